"""The `aft` and `aft-train` commands: options in, one call into the library, results out.

Importing this module imports nothing heavy, so that `--help` is instant; each command imports what it needs when it
runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness import __version__
from aft_harness.errors import AftError, ModelError, TaskError, TrainingError

if TYPE_CHECKING:
    from aft_harness.examples import TaskExamples, TaskSelection
    from aft_harness.statistics import PairedCount
    from aft_harness.training import Trained

# lm-eval spells options with underscores: both spellings work everywhere.
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 100,
}


class _Command(click.Command):
    """A command whose bad input ends in one line on stderr and an exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except AftError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted: nothing was written.", err=True)
            ctx.exit(130)


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="aft")
def main() -> None:
    """Train, evaluate and share boosters: small learned vectors that steer a frozen language model."""


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which model, worded as lm-eval words them."""
    for option in (
        click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"),
        click.option(
            "--dtype", default="auto", show_default=True, help="float32, bfloat16, float16; auto = checkpoint."
        ),
        click.option("--revision", default="main", show_default=True, help="Branch, tag or commit on the hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run model code from the hub."),
        click.option("--model-args", default="", metavar="K=V,...", help="Further model arguments, as for lm_eval."),
        click.option("--model", required=True, help="Hub id or folder of a causal language model."),
    ):
        command = option(command)
    return command


def _prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how prompts are formatted, worded as lm-eval words them."""
    for option in (
        click.option("--fewshot-as-multiturn/--no-fewshot-as-multiturn", default=None, help="Shots as chat turns."),
        click.option("--system-instruction", help="System message in front of every prompt."),
        click.option("--apply-chat-template", is_flag=True, help="Format prompts with the chat template."),
        click.option("--num-fewshot", type=click.IntRange(min=0), help="Few-shot examples.  [default: the task's own]"),
        click.option("--include-path", multiple=True, metavar="FOLDER", help="Folder with further task YAMLs."),
    ):
        command = option(command)
    return command


@main.command("train", context_settings=_CONTEXT)
@_model_options
@click.option("--tasks", required=True, metavar="T,...", help="lm-eval tasks to learn from.")
@_prompt_options
@click.option(
    "--train-docs", multiple=True, metavar="[T=]SPLIT[a:b]", help="Rows to draw from.  [default: training split]"
)
@click.option("--limit", multiple=True, metavar="[T=]N", help="Training documents per task.  [default: all]")
@click.option(
    "--dev-docs", multiple=True, metavar="[T=]N", help="Development documents per task, to pick the best epoch by."
)
@click.option("--weight", multiple=True, metavar="T=W", help="Weight of a task in a mixture.  [default: 1]")
@click.option(
    "--layer", "--layers", "layers", metavar="L,...", help="Decoder layers from 0.  [default: the middle one]"
)
@click.option(
    "--objective",
    type=click.Choice(["answer", "choice"]),
    help="Loss on the answer's tokens, or on the ranking of choices.  [default: choice where there are choices]",
)
@click.option(
    "--choice-norm",
    type=click.Choice(["none", "characters", "bytes", "tokens"]),
    default="none",
    show_default=True,
    help="Divide a choice's loglikelihood by its length; characters = acc_norm.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-2, show_default=True, help="Adam's rate.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Documents per step.")
@click.option("--seed", type=int, default=0, show_default=True, help="Order of the training documents.")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Which documents train and which develop.")
@click.option(
    "--cache-limit",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="Memory for cached hidden states; the rest goes to a temporary file.",
)
@click.option("--licence", help="Licence to record in the booster.")
@click.option("--output", required=True, metavar="FILE.safetensors", help="The booster file to write.")
def train(
    *,
    tasks: str,
    train_docs: tuple[str, ...],
    limit: tuple[str, ...],
    dev_docs: tuple[str, ...],
    weight: tuple[str, ...],
    include_path: tuple[str, ...],
    num_fewshot: int | None,
    apply_chat_template: bool,
    system_instruction: str | None,
    fewshot_as_multiturn: bool | None,
    layers: str | None,
    objective: Any,
    choice_norm: Any,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    split_seed: int,
    cache_limit: float,
    licence: str | None,
    output: str,
    **model: Any,
) -> None:
    """Train a booster: freeze the model and learn the vector that makes the tasks' right answers likelier."""
    _check_output(output)
    indices = _layers(layers)
    with _quiet():
        from aft_harness import examples, training

        selections = _selections(tasks, limit, weight, train_docs, dev_docs)
        prompting = examples.Prompting(
            num_fewshot, apply_chat_template, system_instruction, fewshot_as_multiturn, include_path
        )
        settings = training.Settings(indices, objective, choice_norm, epochs, lr, batch_size, seed, split_seed)
        loaded = examples.load_tasks(selections, include_path)
        lm = _load_model(batch_size=batch_size, **model)
        drawn = [examples.task_examples(selection, task, prompting, lm, split_seed) for selection, task in loaded]
        for task in drawn:
            click.echo(_said(task), err=True)
        with _bar() as update:
            trained = training.train(lm, drawn, settings, prompting, licence, int(cache_limit * 2**30), update)
    trained.booster.save(output)
    click.echo(_summary(trained, output))


@main.command("show", context_settings=_CONTEXT)
@click.argument("vector")
def show(vector: str) -> None:
    """Print what a booster is: layers, size, norm, and where it came from."""
    from aft_harness import references

    booster, strength = references.load(vector)
    provenance = dict(booster.provenance)
    base = provenance.get("base_model") or {}
    lines = [
        ("booster", f"{vector} at strength {strength:g}" if strength != 1 else vector),
        ("sha256", booster.sha256),
        ("base model", f"{base.get('name', 'unknown')} ({str(base.get('fingerprint', ''))[:12]})"),
        ("method", f"{provenance.get('method', 'unknown')}, objective {provenance.get('objective', 'unknown')}"),
        ("parameters", f"{booster.parameters:,} (hidden size {booster.hidden_size})"),
    ]
    for layer, injection in booster.injections.items():
        norm = float(sum(tensor.square().sum() for tensor in injection.tensors.values())) ** 0.5
        lines.append((f"layer {layer}", f"{injection.spec['kind']}, norm {norm:.4f}"))
    for task in provenance.get("tasks", []):
        lines.append(("trained on", f"{task['task']} {task['split']}: {task['n_train']} documents"))
    for moment in ("before", "after"):
        if score := provenance.get(moment):
            lines.append((moment, f"{_score(score['loss'], score['accuracy'])} ({provenance.get('measured_on')})"))
    for key in ("dtype", "seed", "date", "licence"):
        if provenance.get(key) is not None:
            lines.append((key, str(provenance[key])))
    click.echo("\n".join(f"{name:<12}{value}" for name, value in lines))


@main.command("evaluate", context_settings=_CONTEXT)
@_model_options
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    metavar="V",
    help="A booster, as lm_eval's vector=; may be repeated.",
)
@click.option("--tasks", required=True, metavar="T,...", help="lm-eval tasks to evaluate.")
@_prompt_options
@click.option("--limit", type=click.IntRange(min=1), help="Documents per task, for a first look.")
@click.option("--batch-size", default="16", show_default=True, help="Rows a pass, or auto.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for lm-eval's output files.")
def evaluate(
    *,
    vectors: tuple[str, ...],
    tasks: str,
    include_path: tuple[str, ...],
    num_fewshot: int | None,
    apply_chat_template: bool,
    system_instruction: str | None,
    fewshot_as_multiturn: bool | None,
    limit: int | None,
    batch_size: str,
    output: Path | None,
    **model: Any,
) -> None:
    """Evaluate boosters against one shared baseline, in one pass over the tasks, and print the paired table."""
    with _quiet():
        from aft_harness import evaluation, examples, references

        prompting = examples.Prompting(
            num_fewshot, apply_chat_template, system_instruction, fewshot_as_multiturn, include_path
        )
        variants = [evaluation.Variant("baseline")]
        for number, vector in enumerate(vectors, start=1):
            booster, strength = references.load(vector)
            variants.append(evaluation.Variant(f"variant{number}", booster, strength))
        names = _task_names(tasks)
        examples.task_manager(names, include_path)
        lm = _load_model(batch_size=batch_size, **model)
        found = evaluation.evaluate(lm, variants, names, prompting, limit=limit, output=output)
    baseline, *steered = found
    for vector, results in zip(vectors, steered, strict=True):
        click.echo(vector)
        for task, metric, paired in evaluation.paired(baseline, results):
            click.echo(f"  {task} {metric}: {_paired(paired)}")


@main.command("compare", context_settings=_CONTEXT)
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("steered", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="Task whose samples both folders hold.")
@click.option("--metric", default="acc", show_default=True, help="A 0/1 metric of the task.")
@click.option("--filter", "filter_name", help="Name of a filter, where the task has several.")
@click.option("--docs", metavar="A:B", help="Documents by id, as a slice.  [default: all]")
def compare(baseline: Path, steered: Path, task: str, metric: str, filter_name: str | None, docs: str | None) -> None:
    """Compare two output folders of lm_eval --log_samples, document by document, with an exact test."""
    from aft_harness.samples import compare_samples, read_samples, select

    before, after = (select(read_samples(folder, task, filter_name), docs) for folder in (baseline, steered))
    paired = compare_samples(before, after, metric)
    click.echo(f"{task} {metric}{f', documents {docs}' if docs else ''}: {_paired(paired)}")


@main.command("tasks", context_settings=_CONTEXT)
def tasks_folder() -> None:
    """Print the folder of the task suites that come with aft_harness, for --include_path."""
    from aft_harness.task_folder import folder

    click.echo(folder())


@main.command("demo-model", context_settings=_CONTEXT)
def demo_model() -> None:
    """Print the folder of the embedded model, SmolLM2-135M-Instruct, made on first use."""
    with _quiet():
        from aft_harness.demo import model_folder

        path = model_folder()
    click.echo(path)


@main.command("demo", context_settings=_CONTEXT)
@click.option("--output", default="demo", show_default=True, metavar="FOLDER", help="Where the results go.")
def demo(output: str) -> None:
    """Train a booster for the embedded model, evaluate it with the stock lm_eval, and print the paired result."""
    with _quiet():
        from aft_harness.demo import run

        run(Path(output))


def train_main() -> None:
    """Entry point of `aft-train`."""
    train(prog_name="aft-train")


def _check_output(output: str) -> None:
    folder = os.path.dirname(output) or "."
    if not output.endswith(".safetensors"):
        raise TrainingError(f"--output {output}: a booster file ends in .safetensors")
    if os.path.isdir(output) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise TrainingError(f"--output {output}: {folder} is not a folder that can be written")


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"--layer {text}: expected layer numbers from 0, such as 8 or 8,16") from None


def _selections(
    tasks: str, limit: Sequence[str], weight: Sequence[str], train_docs: Sequence[str], dev_docs: Sequence[str]
) -> list[TaskSelection]:
    from aft_harness.examples import TaskSelection

    names = _task_names(tasks)
    limits = _per_task("--limit", limit, names, _count)
    weights = _per_task("--weight", weight, names, _positive)
    rows = _per_task("--train-docs", train_docs, names, str)
    development = _per_task("--dev-docs", dev_docs, names, _count)
    return [
        TaskSelection(name, limits.get(name), weights.get(name, 1.0), rows.get(name), development.get(name, 0))
        for name in names
    ]


def _task_names(tasks: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise TaskError("--tasks is empty: name at least one lm-eval task")
    return names


def _per_task(option: str, values: Sequence[str], names: Sequence[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """Values by task from `V` (every task) and `task=V`, of which the latter wins."""
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.rpartition("=")
        if equals and name not in names:
            raise TaskError(f"{option} {value}: {name!r} is not among --tasks")
        try:
            parsed = read(text)
        except ValueError as error:
            raise TaskError(f"{option} {value}: {error}") from None
        if equals:
            own[name] = parsed
        else:
            common = dict.fromkeys(names, parsed)
    return {**common, **own}


def _count(text: str) -> int:
    if not text.isdigit():
        raise ValueError("expected a number of documents")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number")
    return value


def _load_model(
    *,
    model: str,
    model_args: str,
    revision: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    batch_size: int | str,
) -> Any:
    from lm_eval.utils import simple_parse_args_string

    from aft_harness.lm import SteeredHFLM

    if wrong := [part for part in model_args.split(",") if part and "=" not in part]:
        raise ModelError(f"--model-args {wrong[0]}: expected key=value, separated by commas")
    arguments: dict[str, Any] = {
        "pretrained": model,
        "revision": revision,
        "dtype": dtype,
        "batch_size": batch_size,
        "trust_remote_code": trust_remote_code,
        **simple_parse_args_string(model_args),
    }
    if device:
        arguments["device"] = device
    return SteeredHFLM(**arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' own bars and notices off the screen; warnings of aft_harness stay."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported: lm-eval's own bars obey it too
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    from transformers.utils import logging as transformers_logging

    set_verbosity_error()
    disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    yield


@contextmanager
def _bar() -> Iterator[Callable[[Any], None]]:
    from tqdm import tqdm

    with tqdm(unit="step", disable=None, file=sys.stderr, dynamic_ncols=True) as bar:

        def update(progress: Any) -> None:
            bar.total = progress.steps
            bar.set_description(progress.stage)
            if progress.step:
                bar.set_postfix(epoch=progress.epoch, loss=f"{progress.loss:.4f}", refresh=False)
            bar.update(progress.step - bar.n)

        yield update


def _said(task: TaskExamples) -> str:
    parts = [f"{task.task}: {len(task.train)} training documents of {task.split}"]
    if task.development:
        parts.append(f"{len(task.development)} development documents")
    if task.overlapping:
        parts.append(f"{task.overlapping} dropped that the evaluated split also holds")
    if task.goldless:
        parts.append(f"{task.goldless} dropped without a usable answer")
    return ", ".join(parts)


def _summary(trained: Trained, output: str) -> str:
    lines = [("booster", f"{output} ({os.path.getsize(output):,} bytes)"), ("sha256", trained.booster.sha256)]
    for name, score in (("before", trained.before), ("after", trained.after)):
        lines.append((name, f"{_score(score.loss, score.accuracy)} on {score.n} {trained.measured_on} documents"))
    lines.append(("epoch", f"{trained.kept_epoch} kept of {len(trained.epoch_losses)}"))
    for layer, ratio in trained.relative_norm.items():
        lines.append((f"layer {layer}", f"norm of the vector is {ratio:.1%} of the residual stream's"))
    memory = f", peak memory {trained.peak_memory / 2**30:.2f} GiB" if trained.peak_memory else ""
    lines.append(("cost", f"{trained.seconds:.1f} s{memory}"))
    return "\n".join(f"{name:<10}{value}" for name, value in lines)


def _paired(paired: PairedCount) -> str:
    return (
        f"n = {paired.n}, {paired.baseline:.1%} -> {paired.steered:.1%}, {100 * paired.delta:+.1f} points "
        f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}], gained {paired.gained}, lost {paired.lost}, "
        f"exact McNemar p = {paired.p_value:.2g}"
    )


def _score(loss: float, accuracy: float | None) -> str:
    return f"loss {loss:.4f}" + ("" if accuracy is None else f", accuracy {accuracy:.1%}")
