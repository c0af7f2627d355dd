"""Boosters against what else could be reached for: heuristics, parameter-efficient fine-tuning, prompting.

    python scripts/compare.py FOLDER            # hours on two CPU cores; what is done is kept in FOLDER

Every method gets the same training documents, chooses its rate or strength on the same development documents, and sees
the test documents once. A run of a method takes at most `BUDGET` seconds. Methods that change a model in place are
trained by the loop that trains boosters, on the same rows in the same order with the same objective; repeng,
steering-vectors and pyreft run in environments of their own, through scripts/peers. Real rows are needed: set
HF_DATASETS_CACHE to a cache that holds them, or be online.

Written: leaderboards/comparison, and the tables of docs/comparison.md, which says what its columns mean.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "leaderboards" / "comparison"
BUDGET = 300.0
EPOCHS, BATCH_SIZE = 3, 8
SEEDS = (0, 1, 2)

FEWER = (10, 30, 100, 300)
"""Training documents of the curve."""
LEARN = {"arc_easy": 594, "hellaswag": 600, "gsm8k_easy": 600}
"""Training documents of each task, at most."""
DEVELOP = {"arc_easy": "validation[0:300]", "hellaswag": 200, "gsm8k_easy": "validation[0:200]"}
"""Development documents: rows of a split that nothing evaluates, or so many that are carved from the training split."""
EXAMS = {
    "arc_easy": ("arc_easy", 400, 1188),
    "arc_easy 0-399": ("arc_easy", 0, 400),
    "hellaswag": ("hellaswag", 1000, 3000),
    "gsm8k_easy": ("gsm8k_easy", 0, 500),
}
"""Test documents by name: the task and its rows."""
ELSEWHERE = 600
"""So many of the HellaSwag documents are asked of a method that did not learn from HellaSwag."""
PASSAGES = (4000, 4100)
"""Rows of HellaSwag's validation split whose contexts and right endings are the plain text."""

Scorer = Callable[[Sequence[Any]], list[float]]


@dataclass
class Fitted:
    """A method after its training.

    Attributes:
        score: Gives the loglikelihoods of requests.
        parameters: Numbers that were learned.
        file_bytes: Size of the file that is shared.
        seconds: Of the training that was kept.
        tried: The settings that development documents chose from, with their losses.
        shots: Few-shot examples in the prompts.
    """

    score: Scorer
    parameters: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    tried: list[dict[str, Any]] = field(default_factory=list)
    shots: int = 0


# --- documents ---


def load() -> Any:
    """A fresh copy of the model."""
    from aft_harness.demo import model_folder
    from aft_harness.lm import SteeredHFLM

    return SteeredHFLM(str(model_folder()), dtype="bfloat16", softmax_dtype="float32", batch_size=16, device="cpu")


def drawn(lm: Any, task: str, limit: int | None = None) -> Any:
    """Training and development examples of a task."""
    from dataclasses import replace

    from aft_harness.examples import Prompting, TaskSelection, load_tasks, task_examples
    from aft_harness.task_folder import folder

    def examples(selection: Any) -> Any:
        ((chosen, loaded),) = load_tasks([selection], [str(folder())])
        return task_examples(chosen, loaded, Prompting(), lm)

    develop = DEVELOP[task]
    carved = develop if isinstance(develop, int) else 0
    found = examples(TaskSelection(task, limit=limit or LEARN[task], dev_docs=carved))
    if isinstance(develop, str):
        known = {example.document for example in found.train}
        own = examples(TaskSelection(task, train_docs=develop, dev_docs=10**6, development_only=True)).development
        found = replace(found, development=[example for example in own if example.document not in known])
    return found


@dataclass(frozen=True)
class Exam:
    """Test documents as requests, and lm-eval's own code that grades them."""

    requests: list[Any]
    documents: list[tuple[Any, int]]
    task: Any

    def grade(self, loglikelihoods: Sequence[float]) -> dict[str, list[float]]:
        """Outcome of each document by metric."""
        found: dict[str, list[float]] = {"acc": [], "acc_norm": []}
        scores = iter(loglikelihoods)
        for doc, choices in self.documents:
            graded = self.task.process_results(doc, [(next(scores), False) for _ in range(choices)])
            for metric, values in found.items():
                values.append(float(graded[metric]))
        return found


@cache
def exam(name: str, shots: int, count: int | None) -> Exam:
    """The documents of an exam, formatted by lm-eval; the first `count` of them."""
    from aft_harness.examples import FEWSHOT_SEED, TaskSelection, load_tasks
    from aft_harness.task_folder import folder

    task, start, stop = EXAMS[name]
    stop = stop if count is None else start + count
    ((_, loaded),) = load_tasks([TaskSelection(task)], [str(folder())])
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(FEWSHOT_SEED)
    loaded.build_all_requests(samples=set(range(start, stop)))
    lm = encoder()
    requests, documents = [], []
    for _, doc in loaded.doc_iterator(samples=set(range(start, stop))):
        documents.append((doc, len(loaded.doc_to_choice(doc))))
    for instance in loaded.instances:
        requests.append(lm.encode(*instance.args))
    return Exam(requests, documents, loaded)


@cache
def encoder() -> Any:
    """A model that only ever tokenises."""
    return load()


@cache
def passages() -> list[Any]:
    """Plain text, to be predicted from its first token."""
    from aft_harness.examples import TaskSelection, load_tasks
    from aft_harness.scoring import Request

    ((_, loaded),) = load_tasks([TaskSelection("hellaswag")])
    lm = encoder()
    texts = []
    for doc in loaded.validation_docs().select(range(*PASSAGES)):
        tokens = lm.tok_encode(f"{doc['query']} {doc['choices'][int(doc['gold'])]}")
        texts.append(Request((tokens[0],), tuple(tokens[1:])))
    return texts


# --- methods ---


def scorer(lm: Any, booster: Any = None, strength: float = 1.0) -> Scorer:
    """Loglikelihoods by the packed engine."""
    variant = lm.steering_for(booster, strength)
    return lambda requests: [score for score, _ in lm.score_variants(list(requests), [variant])[0]]


def zero_shot(task: str, seed: int, folder: Path) -> Fitted:
    """The unchanged model."""
    return Fitted(scorer(load()))


def few_shot(task: str, seed: int, folder: Path) -> Fitted:
    """Five examples in the prompt."""
    return Fitted(scorer(load()), shots=5)


def ours(task: str, seed: int, folder: Path, **changes: Any) -> Fitted:
    """`aft-train` with its defaults; no setting is chosen for the task."""
    from dataclasses import replace

    from aft_harness.recipe import RECIPES
    from aft_harness.training import train

    lm = load()
    learned = drawn(lm, task, changes.pop("limit", None))
    settings = replace(RECIPES["default"], seed=seed, **changes)
    # Development documents are measured, but choose nothing: a plain `aft-train` has none.
    trained = train(lm, [replace(learned, development=[])], settings)
    path = folder / "boosters" / f"ours-{task}-{seed}-{trained.booster.sha256[:8]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.booster.save(str(path))
    booster = trained.booster
    return Fitted(scorer(lm, booster), booster.parameters, path.stat().st_size, trained.seconds)


def tuned(rates: Sequence[float], fit: Callable[[float], tuple[Any, float, float]]) -> tuple[Any, list[dict[str, Any]]]:
    """What `fit` gives at the rate whose development loss is lowest, and all that was tried."""
    best, tried = None, []
    for rate in rates:
        made, loss, seconds = fit(rate)
        tried.append({"rate": rate, "development_loss": loss, "seconds": seconds})
        click.echo(f"    rate {rate:g}: development loss {loss:.4f}, {seconds:.0f} s", err=True)
        if best is None or loss < best[1]:
            best = made, loss
    assert best is not None
    return best[0], tried


def peft_method(name: str, rates: Sequence[float]) -> Callable[[str, int, Path], Fitted]:
    """A method of the PEFT library, trained by our own loop with our objective."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        chosen = rates
        first = folder / "cells" / f"{name.replace(' ', '_')}-{task}-0.json"
        if seed and first.is_file():  # a rate is chosen once
            tried = json.loads(first.read_text())["tried"]
            chosen = [min(tried, key=lambda one: one["development_loss"])["rate"]]

        def fit(rate: float) -> tuple[Any, float, float]:
            return _peft_trained(name, task, seed, rate)

        (score, parameters, size, seconds), tried = tuned(chosen, fit)
        return Fitted(score, parameters, size, seconds, tried)

    return fitted


def _peft_trained(name: str, task: str, seed: int, rate: float) -> tuple[Any, float, float]:
    import tempfile
    from contextlib import nullcontext

    import torch
    from peft import get_peft_model
    from torch.optim import Adam

    from aft_harness import optimiser
    from aft_harness.lesson import Lesson
    from aft_harness.recipe import Settings
    from aft_harness.scoring import Engine
    from aft_harness.states import StateStore
    from aft_harness.training import run_epoch

    lm = load()
    learned = drawn(lm, task)
    torch.manual_seed(seed)
    wrapped = get_peft_model(lm.model, _peft_config(name))
    engine = lm.engine
    if name == "prompt tuning":
        engine = Engine(_Prefixed(wrapped), lm.engine.layers, lm.engine.device, packed=False)
    learning = [part for part in wrapped.parameters() if part.requires_grad]
    parameters = sum(part.numel() for part in learning)
    settings = Settings(epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed, lr=rate)
    adam = Adam(learning, lr=rate)
    pace = optimiser.scheduler(adam, "linear", EPOCHS * math.ceil(len(learned.train) / BATCH_SIZE))
    start = time.perf_counter()

    def in_time(progress: Any) -> None:
        if time.perf_counter() - start > BUDGET:
            raise TimeoutError

    with StateStore(0) as store, nullcontext() if name == "prompt tuning" else engine.differentiated():
        lesson = Lesson(engine, [learned], 0, store)
        try:
            for epoch in range(1, EPOCHS + 1):
                run_epoch(lesson, learned.train, settings, {}, pace, epoch, in_time)
        except TimeoutError:
            click.echo(f"    stopped after {BUDGET:.0f} s", err=True)
        seconds = time.perf_counter() - start
        loss = lesson.score(learned.development).loss
    with tempfile.TemporaryDirectory() as scratch:
        wrapped.save_pretrained(scratch)
        size = sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))

    def score(requests: Sequence[Any]) -> list[float]:
        return [value for value, _ in engine.loglikelihoods(list(requests), 4096)[0]]

    return (score, parameters, size, seconds), loss, seconds


def _peft_config(name: str) -> Any:
    import peft

    causal = peft.TaskType.CAUSAL_LM
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if name == "LoRA r=8":
        return peft.LoraConfig(task_type=causal, r=8, lora_alpha=16, target_modules=linear)
    if name == "IA3":
        feed = ["down_proj"]
        return peft.IA3Config(task_type=causal, target_modules=["k_proj", "v_proj", *feed], feedforward_modules=feed)
    if name == "LN tuning":
        norms = ["input_layernorm", "post_attention_layernorm", "norm"]
        return peft.LNTuningConfig(task_type=causal, target_modules=norms)
    if name == "BEFT":
        return peft.BeftConfig(task_type=causal, target_modules=["v_proj"])
    return peft.PromptTuningConfig(task_type=causal, num_virtual_tokens=20)


def _Prefixed(wrapped: Any) -> Any:  # noqa: N802 (makes one)
    """PEFT's prompt tuning as a model whose logits are those of the real tokens."""
    from torch import nn

    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = wrapped, wrapped.config
            self.dtype = wrapped.base_model.dtype

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            from types import SimpleNamespace

            logits = self.inner(input_ids=input_ids, use_cache=False).logits
            return SimpleNamespace(logits=logits[:, -input_ids.shape[1] :])

    return Prefixed()


def directions(package: str, requirement: str) -> Callable[[str, int, Path], Fitted]:
    """Directions that another package extracts; layers and strength are chosen on development documents."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        import torch

        from aft_harness.answers import answers
        from aft_harness.booster import Booster
        from aft_harness.demo import model_folder

        lm = load()
        learned = drawn(lm, task)
        told = {
            "model": str(model_folder()),
            "pairs": [_pair(lm, example) for example in learned.train],
            "check": [[request.context, request.continuation] for request in learned.development[0].requests],
        }
        given = peer(folder, package, requirement, "directions.py", told, package)
        vectors = {int(layer): torch.tensor(vector) for layer, vector in given["directions"].items()}
        check = Booster.static({layer: vectors[layer] for layer in given["layers"]})
        _check_directions(lm, learned.development[0].requests, check, given)
        settings = [
            *((tuple(given["layers"]), strength) for strength in (-1, -0.3, 0.1, 0.3, 0.5, 1, 1.5, 2)),
            *(((layer,), strength) for layer in (5, 10, 15, 20) for strength in (-1, 0.5, 1, 2, 4)),
        ]
        boosters = [Booster.static({layer: vectors[layer] for layer in layers}) for layers, _ in settings]
        variants = [
            lm.steering_for(booster, strength) for booster, (_, strength) in zip(boosters, settings, strict=True)
        ]
        start = time.perf_counter()
        losses = [sum(answer.loss for answer in own) / len(own) for own in answers(lm, learned.development, variants)]
        tried = [
            {"layers": list(layers), "strength": strength, "development_loss": loss}
            for (layers, strength), loss in zip(settings, losses, strict=True)
        ]
        click.echo(f"    {len(tried)} settings in {time.perf_counter() - start:.0f} s", err=True)
        best = min(range(len(losses)), key=losses.__getitem__)
        kept = boosters[best].scaled(settings[best][1])
        path = folder / "boosters" / f"{package}-{task}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.save(str(path))
        return Fitted(scorer(lm, kept), kept.parameters, path.stat().st_size, given["seconds"], tried)

    return fitted


def _pair(lm: Any, example: Any) -> list[str]:
    """The question with its right answer, and with its first wrong one."""
    gold = example.gold[0]
    wrong = next(index for index in range(len(example.requests)) if index != gold)
    chosen = (example.requests[gold], example.requests[wrong])
    return [lm.tok_decode(list(request.context + request.continuation)) for request in chosen]


def _check_directions(lm: Any, requests: Sequence[Any], booster: Any, given: Mapping[str, Any]) -> None:
    """Our steering with the package's vectors must give what the package itself gives, up to half precision."""
    for name, found in (("plain", scorer(lm)(requests)), ("check", scorer(lm, booster)(requests))):
        difference = max(abs(one - other) for one, other in zip(found, given[name], strict=True))
        length = sum(len(request.continuation) for request in requests) / len(requests)
        click.echo(f"    {name}: the package's own loglikelihoods and ours differ by {difference:.3f}", err=True)
        if difference > 0.5 * length:
            raise click.ClickException(f"{name}: {found} is not what the package gives, {given[name]}")


def loreft(task: str, seed: int, folder: Path) -> Fitted:
    """LoReFT of pyreft, in an environment of its own."""
    from aft_harness.demo import model_folder

    lm = load()
    learned = drawn(lm, task)

    def plain(examples: Sequence[Any]) -> list[Any]:
        return [[[[r.context, r.continuation] for r in example.requests], example.gold[0]] for example in examples]

    exams = {name: exam(name, 0, count) for name, count in asked(task).items()}
    requests = {name: [[r.context, r.continuation] for r in one.requests] for name, one in exams.items()}
    requests["text"] = [[r.context, r.continuation] for r in passages()]
    told = {
        "model": str(model_folder()),
        "train": plain(learned.train),
        "development": plain(learned.development),
        "exams": requests,
        "rates": [4e-3, 1e-3],
        **{"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": seed, "budget": BUDGET},
    }
    given = peer(folder, "pyreft", "pyreft==0.1.0", "loreft.py", told)
    known = {
        tuple(map(tuple, request)): score
        for name, own in requests.items()
        for request, score in zip(own, given["exams"][name], strict=True)
    }

    def score(wanted: Sequence[Any]) -> list[float]:
        return [known[request.context, request.continuation] for request in wanted]

    return Fitted(score, given["parameters"], 4 * given["parameters"], given["seconds"], given["tried"])


def peer(
    folder: Path, package: str, requirement: str, script: str, told: Mapping[str, Any], *arguments: str
) -> dict[str, Any]:
    """What a script of scripts/peers gives, run in an environment that has one package."""
    home = folder / "environments" / package
    python = home / "bin" / "python"
    if not (home / "installed").is_file():
        click.echo(f"    installing {requirement}", err=True)
        venv.create(home, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", requirement, "torch==2.13.0"]
        ran = subprocess.run(install, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise click.ClickException(f"{requirement} cannot be installed: {ran.stderr.strip()[-500:]}")
        (home / "installed").touch()
    source, target = folder / f"{package}-input.json", folder / f"{package}-output.json"
    source.write_text(json.dumps(told))
    command = [str(python), str(ROOT / "scripts" / "peers" / script), *arguments, str(source), str(target)]
    ran = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    if ran.returncode:
        raise click.ClickException(f"{package} failed: {ran.stderr.strip()[-500:]}")
    return json.loads(target.read_text())


METHODS: dict[str, Callable[[str, int, Path], Fitted]] = {
    "zero-shot": zero_shot,
    "five-shot": few_shot,
    "ours": ours,
    **{f"ours, {count} documents": partial(ours, limit=count) for count in FEWER},
    "LoRA r=8": peft_method("LoRA r=8", (3e-4, 1e-3, 3e-3)),
    "IA3": peft_method("IA3", (1e-2, 3e-2, 1e-1)),
    "LN tuning": peft_method("LN tuning", (1e-3, 3e-3, 1e-2)),
    "BEFT": peft_method("BEFT", (1e-3, 1e-2, 3e-2)),
    "prompt tuning": peft_method("prompt tuning", (3e-2, 1e-1)),
    "repeng": directions("repeng", "repeng==0.4.0"),
    "steering-vectors": directions("steering-vectors", "steering-vectors==0.12.2"),
    "LoReFT (pyreft)": loreft,
}


def cells() -> Iterator[tuple[str, str, int]]:
    """Every (method, task, seed), the most telling first."""
    yield "zero-shot", "arc_easy", 0
    for method in ("ours", "LoRA r=8"):
        yield method, "arc_easy", 0
    for method in METHODS:
        if method not in ("zero-shot", "ours", "LoRA r=8"):
            yield method, "arc_easy", 0
    for task in ("gsm8k_easy", "hellaswag"):
        for method in ("ours", "LoRA r=8"):
            yield method, task, 0
    for seed in SEEDS[1:]:
        for task in LEARN:
            for method in ("ours", "LoRA r=8"):
                yield method, task, seed


# --- running ---


def asked(task: str) -> dict[str, int | None]:
    """The exams of a method that learned a task, and how many of their documents; None means all."""
    return {name: ELSEWHERE if name == "hellaswag" and task != "hellaswag" else None for name in EXAMS}


def examined(fitted: Fitted, method: str, task: str) -> dict[str, Any]:
    """Outcomes of every exam, and the perplexity of plain text."""
    wanted = asked("hellaswag" if method == "zero-shot" else task)
    if fitted.shots:
        wanted = {name: count for name, count in wanted.items() if name != "hellaswag"}
    outcomes = {}
    for name, count in wanted.items():
        one = exam(name, fitted.shots, count)
        outcomes[name] = one.grade(fitted.score(one.requests))
        click.echo(f"    {name}: acc {sum(outcomes[name]['acc']) / len(outcomes[name]['acc']):.1%}", err=True)
    texts = passages()
    bits = -sum(fitted.score(texts)) / sum(len(text.continuation) for text in texts)
    return {"outcomes": outcomes, "perplexity": None if fitted.shots else math.exp(bits)}


def run_cell(method: str, task: str, seed: int, folder: Path) -> None:
    """Runs one cell unless its file is there; a method that fails leaves its error."""
    from aft_harness.booster import write_atomically

    path = folder / "cells" / f"{method.replace(' ', '_')}-{task}-{seed}.json"
    if path.is_file():
        return
    click.echo(f"{method}, {task}, seed {seed}", err=True)
    start = time.perf_counter()
    told: dict[str, Any] = {"method": method, "task": task, "seed": seed}
    try:
        fitted = METHODS[method](task, seed, folder)
        told |= {
            "parameters": fitted.parameters,
            "file_bytes": fitted.file_bytes,
            "seconds": fitted.seconds,
            "tried": fitted.tried,
            **examined(fitted, method, task),
        }
    except click.ClickException as error:
        click.echo(f"    {error.message}", err=True)
        told["error"] = error.message
    told["cell_seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(told).encode())


@contextmanager
def offline_quiet() -> Iterator[None]:
    """Without the libraries' chatter."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from aft_harness.cli.terminal import quiet

    with quiet():
        yield


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--only", multiple=True, help="METHOD or METHOD:TASK:SEED; everything else is left for later.")
@click.option("--minutes", type=float, help="Start no further cell after so many minutes.")
def main(folder: Path, only: tuple[str, ...], minutes: float | None) -> None:
    """Run the comparison, or what of it is not done yet, and write its tables."""
    start = time.perf_counter()
    with offline_quiet():
        for method, task, seed in cells():
            if only and not {method, f"{method}:{task}:{seed}"} & set(only):
                continue
            if minutes is not None and time.perf_counter() - start > 60 * minutes:
                break
            run_cell(method, task, seed, folder)
    from compare_report import write

    write(folder, OUTPUT, ROOT / "docs" / "comparison.md")


if __name__ == "__main__":
    main()
