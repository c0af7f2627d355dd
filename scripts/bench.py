"""Measures speed and agreement against stock lm-eval: `make bench`.

Ours and the peer run alternately in one process, on the same rows, in the same dtype, at the same batch size. Printed
and written: the median ratio of times, the largest |difference| of loglikelihoods, and the share of documents on which
both choose the same answer. Real rows are needed: set HF_DATASETS_CACHE to a cache that holds them, or be online.

    python scripts/bench.py --list
    python scripts/bench.py --only arc_easy-0shot --reps 3
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "leaderboards" / "bench" / "smollm2-135m.csv"
FIELDS = (
    "work",
    "peer",
    "dtype",
    "documents",
    "batch_size",
    "seconds_ours",
    "seconds_peer",
    "ratio",
    "max_abs_difference",
    "agreement",
    "reps",
    "cpu",
    "torch",
    "lm_eval",
    "date",
)
STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)

Scores = Sequence[tuple[float, bool]]


@dataclass(frozen=True)
class Measured:
    """What a run of one side took and gave."""

    seconds: float
    results: Any


@dataclass(frozen=True)
class Outcome:
    """A row of the table, without what is the same for all."""

    peer: str
    dtype: str
    documents: int
    batch_size: int
    ours: float
    theirs: float
    difference: float | None
    agreement: float | None


def main_row(task: str, shots: int, dtype: str, peer: str, docs: int, reps: int, sampler: str = "default") -> Outcome:
    """Loglikelihoods of one task: `steered-hf` against a model type of lm-eval."""
    ours, theirs = _lm("steered-hf", dtype, peer == "steered"), _lm(peer, dtype, peer == "steered")
    requests, groups = _requests(task, shots, docs, sampler)
    run = partial(_timed, requests=requests)
    _warm(ours, theirs, requests)
    first, second = _alternate(lambda: run(ours), lambda: run(theirs), reps)
    return _compared(peer, dtype, docs, first, second, groups)


def _compared(
    peer: str, dtype: str, docs: int, ours: Sequence[Measured], theirs: Sequence[Measured], groups: Sequence[Any]
) -> Outcome:
    left, right = ours[0].results, theirs[0].results
    difference, agreement = _difference(left, right), _agreement(left, right, groups)
    return Outcome(peer, dtype, docs, 16, _median(ours), _median(theirs), difference, agreement)


def strengths_row(task: str, docs: int, reps: int) -> Outcome:
    """Baseline and nine strengths in one pass against ten stock runs, of which one is timed and taken ten times."""
    ours, theirs = _lm("steered-hf", "float32", True), _lm("steered", "float32", True)
    requests, groups = _requests(task, 0, docs, "default")
    variants = [None, *(ours.steering_for(ours.booster, strength) for strength in STRENGTHS)]
    _warm(ours, theirs, requests)

    def together() -> Measured:
        start = time.perf_counter()
        results = ours.score_variants([ours.encode(*request.args) for request in requests], variants)
        return Measured(time.perf_counter() - start, results[1 + STRENGTHS.index(1.0)])

    def ten_times() -> Measured:
        once = _timed(theirs, requests)
        return Measured(10 * once.seconds, once.results)

    first, second = _alternate(together, ten_times, reps)
    return _compared("ten runs of steered", "float32", docs, first, second, groups)


def overhead_row(task: str, docs: int, reps: int) -> Outcome:
    """`steered-hf` with a booster against itself without."""
    ours, theirs = _lm("steered-hf", "float32", True), _lm("steered-hf", "float32", False)
    requests, _ = _requests(task, 0, docs, "default")
    _warm(ours, theirs, requests)
    first, second = _alternate(lambda: _timed(ours, requests), lambda: _timed(theirs, requests), reps)
    return Outcome("without a booster", "float32", docs, 16, _median(first), _median(second), None, None)


def generation_row(docs: int, reps: int) -> Outcome:
    """gsm8k, five shots, greedy generation."""
    ours, theirs = _lm("steered-hf", "float32", False), _lm("hf", "float32", False)
    requests, _ = _requests("gsm8k", 5, docs, "default")

    def run(lm: Any) -> Measured:
        start = time.perf_counter()
        texts = lm.generate_until(requests, disable_tqdm=True)
        return Measured(time.perf_counter() - start, texts)

    first, second = _alternate(lambda: run(ours), lambda: run(theirs), reps)
    same = [left == right for left, right in zip(first[0].results, second[0].results, strict=True)]
    return Outcome("hf", "float32", docs, 16, _median(first), _median(second), None, statistics.mean(map(float, same)))


def training_row(dtype: str, docs: int, epochs: int) -> Outcome:
    """Letter-format questions, as first published: one example at a time, whole head, every layer, accumulation of 4.

    Ours includes the pass that caches hidden states. The difference is the largest one of the epochs' mean losses.
    """
    from aft_harness.training import Settings, train

    lm, reference = _lm("steered-hf", dtype, False), _lm("steered-hf", "float32", False)
    layer = len(lm.engine.layers) // 2
    task, plain_task = _letters(lm, docs), _letters(reference, docs)
    start = time.perf_counter()
    trained = train(lm, [task], Settings(layers=(layer,), lr=1e-2, epochs=epochs, batch_size=4, objective="answer"))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    losses = _reference_training(reference, plain_task.train, layer, epochs)
    plain_seconds = time.perf_counter() - start
    difference = max(abs(left - right) for left, right in zip(trained.epoch_losses, losses, strict=True))
    return Outcome("reference in float32", dtype, docs, 4, seconds, plain_seconds, difference, None)


def _reference_training(lm: Any, examples: Sequence[Any], layer: int, epochs: int) -> list[float]:
    """The published procedure, plainly: no batching, no caching, logits at every position."""
    import torch

    model = lm.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    vector = torch.zeros(model.config.hidden_size, requires_grad=True)
    hook = model.get_decoder().layers[layer].register_forward_hook(lambda module, args, output: output + vector)
    optimiser = torch.optim.Adam([vector], lr=1e-2)
    losses = []
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(epoch)).tolist()
        total = 0.0
        for place, index in enumerate(order):
            request = examples[index].requests[examples[index].gold[0]]
            tokens = torch.tensor([[*request.context, *request.continuation]])
            labels = tokens.clone()
            labels[:, : len(request.context)] = -100
            loss = model(tokens, labels=labels).loss
            (loss / 4).backward()
            total += loss.item()
            if place % 4 == 3 or place == len(order) - 1:
                optimiser.step()
                optimiser.zero_grad()
        losses.append(total / len(order))
    hook.remove()
    return losses


def _letters(lm: Any, docs: int) -> Any:
    """HellaSwag rows as lettered questions whose answer is one letter."""
    from aft_harness.examples import Example, TaskExamples, TaskSelection, load_tasks

    ((_, task),) = load_tasks([TaskSelection("hellaswag")])
    examples = []
    for doc in task.validation_docs().select(range(docs)):
        options = "\n".join(f"{letter}. {ending}" for letter, ending in zip("ABCD", doc["endings"], strict=True))
        prompt = f"Complete the sentence:\n{doc['ctx']}\n\n{options}\n\nThe best answer is:"
        requests = tuple(lm.encode(prompt, f" {letter}") for letter in "ABCD")
        examples.append(Example("letters", doc["ctx"], requests, (int(doc["label"]),), tuple("ABCD")))
    return TaskExamples("letters", "1.0", "choice", f"validation[0:{docs}]", 0, examples, [])


@cache
def _lm(kind: str, dtype: str, steered: bool) -> Any:
    import torch
    from lm_eval.api.registry import get_model

    from aft_harness.booster import Booster
    from aft_harness.demo import model_folder

    arguments: dict[str, Any] = {"pretrained": str(model_folder()), "dtype": dtype, "batch_size": 16, "device": "cpu"}
    arguments["softmax_dtype"] = "float32"
    vector = 0.3 * torch.randn(576, generator=torch.Generator().manual_seed(0))
    if kind == "steered":
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            entry = {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", "bias": None}
            torch.save({"layers.15": {**entry, "head_index": None}}, file.name)
            return get_model(kind)(steer_path=file.name, **arguments)
    if steered:
        arguments["vector"] = Booster.static({15: vector})
    return get_model(kind)(**arguments)


@cache
def _requests(task: str, shots: int, docs: int, sampler: str) -> tuple[list[Any], list[tuple[int, int, list[int]]]]:
    """lm-eval's own requests, and for each document where its requests start and end and how long its choices are."""
    from lm_eval.api.samplers import get_sampler

    from aft_harness.examples import TaskSelection, load_tasks

    ((_, loaded),) = load_tasks([TaskSelection(task)])
    if sampler != "default":
        loaded.sampler = get_sampler(sampler)(list(loaded.fewshot_docs()))
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(1234)
    loaded.build_all_requests(limit=docs)
    groups, start = [], 0
    for _, doc in loaded.doc_iterator(limit=docs):
        lengths = [len(choice) for choice in loaded.doc_to_choice(doc)] if loaded.config.doc_to_choice else [1]
        groups.append((start, start + len(lengths), lengths))
        start += len(lengths)
    return loaded.instances, groups


def _timed(lm: Any, requests: Sequence[Any]) -> Measured:
    start = time.perf_counter()
    results = lm.loglikelihood(list(requests), disable_tqdm=True)
    return Measured(time.perf_counter() - start, results)


def _warm(ours: Any, theirs: Any, requests: Sequence[Any]) -> None:
    for lm in (ours, theirs):
        lm.loglikelihood(list(requests[:16]), disable_tqdm=True)


def _alternate(
    ours: Callable[[], Measured], theirs: Callable[[], Measured], reps: int
) -> tuple[list[Measured], list[Measured]]:
    pairs = [(ours(), theirs()) if rep % 2 == 0 else (theirs(), ours())[::-1] for rep in range(reps)]
    return [left for left, _ in pairs], [right for _, right in pairs]


def _median(runs: Sequence[Measured]) -> float:
    return statistics.median(run.seconds for run in runs)


def _difference(left: Scores, right: Scores) -> float:
    return max(abs(one - other) for (one, _), (other, _) in zip(left, right, strict=True))


def _agreement(left: Scores, right: Scores, groups: Sequence[tuple[int, int, list[int]]]) -> float:
    """Share of documents on which both choose the same answer, by sum and by length-normalised sum."""

    def choices(scores: Scores) -> Iterator[tuple[int, int]]:
        for start, end, lengths in groups:
            sums = [score for score, _ in scores[start:end]]
            normed = [score / length for score, length in zip(sums, lengths, strict=True)]
            yield sums.index(max(sums)), normed.index(max(normed))

    return statistics.mean(float(one == other) for one, other in zip(choices(left), choices(right), strict=True))


WORKS: dict[str, Callable[[int, int], Outcome]] = {
    "hellaswag-0shot": lambda docs, reps: main_row("hellaswag", 0, "float32", "hf", docs, reps),
    "hellaswag-0shot-steered": lambda docs, reps: main_row("hellaswag", 0, "float32", "steered", docs, reps),
    "hellaswag-0shot-bf16": lambda docs, reps: main_row("hellaswag", 0, "bfloat16", "hf", docs, reps),
    "arc_easy-0shot": lambda docs, reps: main_row("arc_easy", 0, "float32", "hf", docs, reps),
    "arc_easy-5shot": lambda docs, reps: main_row("arc_easy", 5, "float32", "hf", docs, reps),
    "arc_easy-5shot-first_n": lambda docs, reps: main_row("arc_easy", 5, "float32", "hf", docs, reps, "first_n"),
    "hellaswag-strengths": lambda docs, reps: strengths_row("hellaswag", docs, reps),
    "arc_easy-overhead": lambda docs, reps: overhead_row("arc_easy", docs, reps),
    "training-letters": lambda docs, reps: training_row("float32", docs, 5),
    "training-letters-bf16": lambda docs, reps: training_row("bfloat16", docs, 5),
    "gsm8k-generation": lambda docs, reps: generation_row(min(docs, 20), reps),
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(WORKS)), help="Work to measure.  [default: all]")
@click.option("--docs", default=200, show_default=True, help="Documents per task.")
@click.option("--reps", default=3, show_default=True, help="Alternating repetitions; the median counts.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
@click.option("--list", "listing", is_flag=True, help="Print the names of the works.")
def main(only: tuple[str, ...], docs: int, reps: int, output: Path, listing: bool) -> None:
    """Measure speed and agreement against stock lm-eval, with SmolLM2-135M on this machine."""
    if listing:
        click.echo("\n".join(WORKS))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import lm_eval
    import torch

    click.echo(f"{'work':<26}{'peer':<22}{'ours':>9}{'peer':>9}{'ratio':>8}{'max |d|':>10}{'agree':>8}")
    for work in only or WORKS:
        outcome = WORKS[work](docs, reps)
        ratio = outcome.theirs / outcome.ours
        difference = "" if outcome.difference is None else f"{outcome.difference:.1e}"
        agreement = "" if outcome.agreement is None else f"{outcome.agreement:.1%}"
        click.echo(
            f"{work:<26}{outcome.peer:<22}{outcome.ours:>8.1f}s{outcome.theirs:>8.1f}s{ratio:>7.2f}x"
            f"{difference:>10}{agreement:>8}"
        )
        row = (
            *(work, outcome.peer, outcome.dtype, outcome.documents, outcome.batch_size),
            *(f"{outcome.ours:.3f}", f"{outcome.theirs:.3f}", f"{ratio:.3f}", difference, agreement, reps),
            *(f"{platform.machine()}, {torch.get_num_threads()} threads", torch.__version__, lm_eval.__version__),
            datetime.date.today().isoformat(),
        )
        _record(output, dict(zip(FIELDS, row, strict=True)))


def _record(output: Path, row: dict[str, Any]) -> None:
    """Replaces the work's row in the CSV, or adds it."""
    rows = list(csv.DictReader(output.open(encoding="utf-8"))) if output.exists() else []
    kept = [old for old in rows if old["work"] != row["work"]]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows([*kept, row])


if __name__ == "__main__":
    main()
