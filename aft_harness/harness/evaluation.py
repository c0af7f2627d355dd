"""lm-eval tasks under several variants at once: one pass, paired results, metrics computed by lm-eval's own code.

Knows lm-eval's evaluator and the model type. Tasks are loaded once and prompts built once, however many variants there
are. Statistics are the results floor's work.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info, get_commit_from_path

from aft_harness.boosters.variant import Variant
from aft_harness.errors import AftError, FileError, TaskError
from aft_harness.files import folder_beside, make_folder
from aft_harness.harness.score_store import AnswerStore
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.shared_pass import SharedPass, SteeredLM, VariantLM
from aft_harness.harness.shared_task import built_once
from aft_harness.harness.tasks import Tasks, compiled_templates, configure, unchanged
from aft_harness.progress import OnProgress, ignore
from aft_harness.results.runs import Run
from aft_harness.slices import Slice
from aft_harness.text import reason

_SEEDS = {
    "random_seed": DEFAULT_RANDOM_SEED,
    "numpy_seed": DEFAULT_OTHER_SEED,
    "torch_seed": DEFAULT_OTHER_SEED,
    "fewshot_seed": DEFAULT_OTHER_SEED,
}


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval computed for one variant.

    Attributes:
        variant: What ran.
        results: lm-eval's results dictionary, with the samples of every task.
    """

    variant: Variant
    results: dict[str, Any]

    @property
    def run(self) -> Run:
        """The results as the results floor compares them."""
        return Run(self.results, self.results["samples"], self.variant.name, self.variant.name)


def evaluate(
    lm: SteeredLM,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    prompt_format: PromptFormat | None = None,
    *,
    source: Tasks | None = None,
    limit: int | None = None,
    docs: Slice | None = None,
    output: Path | None = None,
    store: AnswerStore | None = None,
    confirm_run_unsafe_code: bool = False,
    on_progress: OnProgress = ignore,
) -> list[VariantResults]:
    """Evaluates tasks under every variant, on the same documents with the same prompts.

    Loglikelihoods of all variants come from one pass, in which the layers below every booster run once; generation runs
    once a variant.

    Args:
        lm: The model, without a booster of its own.
        variants: What to evaluate; names must differ.
        tasks: lm-eval tasks or groups.
        prompt_format: How prompts are formatted.
        source: Where tasks are found, and loaded once for all who share it.
        limit: Documents per task; None takes all.
        docs: Documents by id instead.
        output: Folder for lm-eval's own output files, one folder a variant.
        store: Where loglikelihoods and texts are kept, and looked up before they are computed.
        confirm_run_unsafe_code: Allows tasks that run code which the model wrote.
        on_progress: Called with how many requests of a task are scored, and of how many.

    Raises:
        BoosterError: A booster that does not fit the model.
        TaskError: An unknown task, or one that cannot be evaluated.
    """
    prompt_format, source = prompt_format or PromptFormat(), source or Tasks()
    loaded = source.load(tasks)
    shared = SharedPass(lm, variants, store, on_progress)
    asked = arguments(loaded, prompt_format, limit, docs) | {"confirm_run_unsafe_code": confirm_run_unsafe_code}
    environment = _environment(os.getcwd())
    evaluated = []
    with prepared(loaded), ExitStack() as stack:
        stack.callback(gc.unfreeze)
        for index, variant in enumerate(variants):
            start = time.time()
            gc.freeze()  # what is here stays until the end; looking for garbage in it takes longer than the metrics do
            adapter = VariantLM(shared, index)
            seed(loaded["tasks"].values(), prompt_format)
            with in_one_line(tasks):
                results: dict[str, Any] = dict(evaluator.evaluate(lm=adapter, task_dict=loaded, **asked))
            results["config"] = _config(lm, variant, limit)
            results |= {"date": start, **environment}
            add_tokenizer_info(results, lm)
            if output is not None:
                _write(results, output, variant, lm, prompt_format)
            evaluated.append(VariantResults(variant, results))
    return evaluated


class _Answered(Exception):
    """All requests were made: what comes next are metrics."""


def ask(
    adapter: LM,
    tasks: Sequence[str],
    prompt_format: PromptFormat | None = None,
    *,
    source: Tasks | None = None,
    limit: int | None = None,
    docs: Slice | None = None,
    confirm_run_unsafe_code: bool = False,
) -> None:
    """Asks a model everything that `evaluate` would ask it, and computes no metric.

    Args:
        adapter: What is asked.
        tasks: See `evaluate`; so are all further arguments.
        prompt_format: See `evaluate`.
        source: See `evaluate`.
        limit: See `evaluate`.
        docs: See `evaluate`.
        confirm_run_unsafe_code: See `evaluate`.

    Raises:
        TaskError: An unknown task, or one that cannot be evaluated.
    """
    prompt_format, source = prompt_format or PromptFormat(), source or Tasks()
    loaded = source.load(tasks)
    asked = arguments(loaded, prompt_format, limit, docs) | {"confirm_run_unsafe_code": confirm_run_unsafe_code}
    with prepared(loaded), ExitStack() as stack:
        for task in loaded["tasks"].values():
            vars(task)["apply_filters"] = _answered  # what lm-eval does first with the answers
            stack.callback(vars(task).pop, "apply_filters", None)
        seed(loaded["tasks"].values(), prompt_format)
        with suppress(_Answered), in_one_line(tasks):
            evaluator.evaluate(lm=adapter, task_dict=loaded, **asked)


def _answered(*_: Any) -> None:
    raise _Answered


@contextmanager
def prepared(loaded: Mapping[str, Any]) -> Iterator[None]:
    """In this block tasks build their prompts once, however often they are evaluated; then they are as they were."""
    with ExitStack() as stack:
        stack.enter_context(compiled_templates())
        for task in loaded["tasks"].values():
            stack.enter_context(unchanged(task))
            stack.enter_context(built_once(task))
        yield


@contextmanager
def in_one_line(tasks: Sequence[str]) -> Iterator[None]:
    """Makes one line of what lm-eval raises in this block.

    Raises:
        TaskError: The tasks cannot be evaluated.
    """
    try:
        yield
    except AftError:
        raise
    except (ValueError, KeyError, AssertionError, OSError) as error:  # OSError: data that cannot be fetched
        why = reason(error)
        raise TaskError(f"{', '.join(tasks)} cannot be evaluated ({type(error).__name__}: {why})") from error


def arguments(
    loaded: Mapping[str, Any], prompt_format: PromptFormat, limit: int | None, docs: Slice | None
) -> dict[str, Any]:
    """What lm-eval's evaluator is asked, whichever variant answers.

    Raises:
        TaskError: A slice without documents.
    """
    return {
        "limit": limit,
        "samples": _ids(loaded["tasks"], docs) if docs else None,
        "log_samples": True,
        "bootstrap_iters": 0,
        "system_instruction": prompt_format.system_instruction,
        "apply_chat_template": prompt_format.apply_chat_template,
        "fewshot_as_multiturn": prompt_format.multiturn,
    }


def _ids(tasks: dict[str, Any], docs: Slice) -> dict[str, list[int]]:
    """The ids that a slice means in each task, as lm-eval's `samples`."""
    found = {name: list(docs.of(range(len(task.eval_docs)))) for name, task in tasks.items()}
    for name, ids in found.items():
        if not ids:
            raise TaskError(f"documents {docs}: task {name} has no documents in this range")
    return found


def seed(tasks: Iterable[Any], prompt_format: PromptFormat) -> None:
    """What the stock evaluator sets before each run."""
    random.seed(_SEEDS["random_seed"])
    np.random.seed(_SEEDS["numpy_seed"])
    torch.manual_seed(_SEEDS["torch_seed"])
    for task in tasks:
        configure(task, prompt_format.num_fewshot)


def _config(lm: SteeredLM, variant: Variant, limit: int | None) -> dict[str, Any]:
    """The results' `config`, by the keys of the stock evaluator."""
    return {
        "model": lm.model_type,
        "model_args": {"pretrained": lm.base_model.name},
        **lm.with_variant(variant).get_model_info(),
        "batch_size": None,
        "batch_sizes": list(lm.batch_sizes.values()),
        "device": None,
        "use_cache": None,
        "limit": limit,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
        **_SEEDS,
    }


@cache
def _environment(folder: str) -> Mapping[str, Any]:
    """Versions and machine, as the stock evaluator records them; read once, since it takes seconds."""
    # Not by lm-eval's own function, which lets git complain on the screen where there is no repository.
    described = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"git_hash": described.stdout.strip() or get_commit_from_path(folder)}
    add_env_info(found)
    return found


def _write(results: dict[str, Any], output: Path, variant: Variant, lm: SteeredLM, prompt_format: PromptFormat) -> None:
    """Writes lm-eval's own output files, whole: the results last, so that where they are the samples are, too.

    Raises:
        FileError: They cannot be written.
    """
    folder = make_folder(output) / variant.folder
    with folder_beside(folder) as place:
        _track(results, place, lm, prompt_format)
        # lm-eval only logs what went wrong.
        written = {path.relative_to(place): _is_whole(path, results["samples"]) for path in place.rglob("*.json*")}
        if len(written) != len(results["configs"]) + 1 or not all(written.values()):
            free = shutil.disk_usage(place).free
            raise FileError(f"{folder}: lm-eval's output files cannot be written ({free / 2**20:.0f} MiB are free)")
        for path in sorted(written, key=lambda path: path.name.startswith("results_")):
            make_folder((folder / path).parent)
            os.replace(place / path, folder / path)


def _is_whole(path: Path, samples: Mapping[str, Any]) -> bool:
    """Whether one of lm-eval's output files holds all that it should."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return content.endswith(b"}")
    task = path.name.removeprefix("samples_").rpartition("_")[0]
    return content.count(b"\n") == len(samples[task]) and content.endswith(b"\n")


def _track(results: dict[str, Any], place: Path, lm: SteeredLM, prompt_format: PromptFormat) -> None:
    """Lets lm-eval write its output files."""
    tracker = EvaluationTracker(output_path=str(place))
    chat = prompt_format.apply_chat_template
    tracker.general_config_tracker.log_experiment_args(
        model_source="CUSTOM",
        model_args={"pretrained": lm.base_model.name},
        system_instruction=prompt_format.system_instruction,
        chat_template=lm.chat_template(chat) if chat else None,
        fewshot_as_multiturn=prompt_format.multiturn,
    )
    samples = results["samples"]
    tracker.save_results_aggregated(results={**results, "samples": None}, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
