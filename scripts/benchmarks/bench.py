"""Measures speed and agreement against stock lm-eval: `make bench`.

Ours and the peer run alternately in one process, on the same rows, in the same dtype, at the same batch size. Printed
and written: the median ratio of times, the largest |difference| of loglikelihoods, the share of documents on which both
choose the same answer, and which share of the machine's measured matrix-product peak the needed operations reach: those
on every distinct token prefix, and the head's where an answer is predicted. The works named `scaling` have no peer and
show how our own time grows with documents, few-shot examples and choices. Real rows are needed: set HF_DATASETS_CACHE
to a cache that holds them, or be online.

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
    "peak_fraction",
    "note",
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
    """A row of the table, without what is the same for all.

    Attributes:
        peer: What ours was compared with; empty where nothing was.
        dtype: Of our model's weights.
        documents: Documents or training examples.
        ours: Median seconds.
        theirs: Median seconds of the peer.
        difference: Largest |difference| of loglikelihoods, or of epochs' mean losses.
        agreement: Share of documents with the same answer or text.
        operations: Floating-point operations that the work needs.
        note: What else was found.
        batch_size: Rows a pass, or examples an optimiser step.
    """

    peer: str
    dtype: str
    documents: int
    ours: float
    theirs: float | None = None
    difference: float | None = None
    agreement: float | None = None
    operations: float | None = None
    note: str = ""
    batch_size: int = 16


def main_row(task: str, shots: int, dtype: str, peer: str, docs: int, reps: int, sampler: str = "default") -> Outcome:
    """Loglikelihoods of one task: `steered-hf` against a model type of lm-eval."""
    ours, theirs = _lm("steered-hf", dtype, peer == "steered"), _lm(peer, dtype, peer == "steered")
    requests, groups = _requests(task, shots, docs, sampler)
    run = partial(_timed, requests=requests)
    _warm(ours, theirs, requests)
    first, second = _alternate(lambda: run(ours), lambda: run(theirs), reps)
    note = _noise(theirs, requests, groups, first[0].results, second[0].results) if dtype == "bfloat16" else ""
    return _compared(peer, dtype, docs, first, second, groups, _operations(ours, requests), note)


def _noise(theirs: Any, requests: Any, groups: Any, ours: Scores, stock: Scores) -> str:
    """What rounding does to stock: against itself at another batch size, and either side against stock in float32."""
    theirs.batch_size_per_gpu = 1
    alone = _timed(theirs, requests).results
    theirs.batch_size_per_gpu = 16
    fine = _timed(_lm("hf", "float32", False), requests).results
    return "; ".join(
        f"{name}: agreement {_agreement(left, right, groups):.1%}, difference {_difference(left, right):.1e}"
        for name, left, right in (
            ("hf at batch size 1 against itself at 16", alone, stock),
            ("ours against hf in float32", ours, fine),
            ("hf against hf in float32", stock, fine),
        )
    )


def _compared(
    peer: str,
    dtype: str,
    docs: int,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    groups: Sequence[Any],
    operations: float | None,
    note: str = "",
) -> Outcome:
    left, right = ours[0].results, theirs[0].results
    difference, agreement = _difference(left, right), _agreement(left, right, groups)
    return Outcome(peer, dtype, docs, _median(ours), _median(theirs), difference, agreement, operations, note)


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
    return _compared("ten runs of steered", "float32", docs, first, second, groups, None)


def overhead_row(task: str, docs: int, reps: int) -> Outcome:
    """`steered-hf` with a booster against itself without: many short pairs, because what is looked for is small.

    One model in memory serves both: two copies of the same weights differ by some percent for where they lie.
    """
    from aft_harness.boosters.booster import Booster

    lm = _lm("steered-hf", "float32", False)
    booster = Booster.static({15: _vector()})
    requests, _ = _requests(task, 0, docs, "default")

    def steered() -> Measured:
        with lm.steered_as(booster):
            return _timed(lm, requests)

    steered()  # also checks the packed rows, which later runs need not
    first, second = _alternate(steered, lambda: _timed(lm, requests), 20 * reps)
    ratios = [left.seconds / right.seconds for left, right in zip(first, second, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    note = (
        f"time with a booster over time without, {len(ratios)} pairs: median {middle:.3f}, "
        f"half of them from {low:.3f} to {high:.3f}"
    )
    return Outcome("without a booster", "float32", docs, _median(first), _median(second), note=note)


def scaling_row(task: str, shots: int, choices: int | None, docs: int, reps: int) -> Outcome:
    """Our own time alone; `choices` keeps the first so many endings of each document."""
    lm = _lm("steered-hf", "float32", False)
    requests, groups = _requests(task, shots, docs, "default")
    kept = [request for start, end, _ in groups for request in requests[start:end][:choices]]
    _warm(lm, lm, kept)
    runs = [_timed(lm, kept) for _ in range(reps)]
    encoded = [lm.encode(*request.args) for request in kept]
    read, distinct = sum(len(request.inputs) for request in encoded), _tokens(encoded)[0]
    note = f"{len(kept)} requests of {read} tokens, {distinct} of them distinct"
    return Outcome("", "float32", docs, _median(runs), operations=_operations(lm, kept), note=note)


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
    agreement = statistics.mean(map(float, same))
    return Outcome("hf", "float32", docs, _median(first), _median(second), agreement=agreement)


def training_row(dtype: str, docs: int, reps: int) -> Outcome:
    """Five epochs on letter-format questions, against the published procedure.

    Ours is the pass that caches hidden states and the epochs; the scores before and after, which the published
    procedure takes separately, are left out on both sides. The difference is the largest one of the epochs' mean
    losses; in half precision both boosters are tried on as many questions that neither has seen.
    """
    lm, reference = _lm("steered-hf", dtype, False), _lm("steered-hf", "float32", False)
    (task, _), (plain_task, unseen) = _letters(lm, docs), _letters(reference, docs)
    layer = len(lm.engine.layers) // 2
    first, second = _alternate(
        lambda: _trained(lm, task, layer), lambda: _reference_training(reference, plain_task.train, layer), reps
    )
    (losses, vector), (plain_losses, plain_vector) = first[0].results, second[0].results
    difference = max(abs(left - right) for left, right in zip(losses, plain_losses, strict=True))
    note = _held_out(reference, unseen, layer, plain_vector, vector) if dtype != "float32" else ""
    operations = _training_operations(lm, task.train, layer)
    seconds = _median(first), _median(second)
    return Outcome("published, float32", dtype, docs, *seconds, difference, None, operations, note, batch_size=4)


def attention_row(docs: int, reps: int) -> Outcome:
    """Training in bfloat16 with the attention that `Engine.differentiated` takes, against torch's fused one."""
    from contextlib import nullcontext
    from unittest import mock

    lm = _lm("steered-hf", "bfloat16", False)
    (task, _), layer = _letters(lm, docs), len(lm.engine.layers) // 2

    def fused() -> Measured:
        with mock.patch.object(lm.engine, "differentiated", nullcontext):
            return _trained(lm, task, layer)

    first, second = _alternate(lambda: _trained(lm, task, layer), fused, reps)
    (losses, _), (fused_losses, _) = first[0].results, second[0].results
    difference = max(abs(left - right) for left, right in zip(losses, fused_losses, strict=True))
    return Outcome("fused attention", "bfloat16", docs, _median(first), _median(second), difference, batch_size=4)


EPOCHS = 5


def _trained(lm: Any, task: Any, layer: int) -> Measured:
    from aft_harness.training.recipe import Settings
    from aft_harness.training.train import train

    trained = train(lm, [task], Settings(layers=(layer,), lr=1e-2, epochs=EPOCHS, batch_size=4, objective="answer"))
    seconds = trained.stages["caching"] + trained.stages["training"]
    return Measured(seconds, (trained.epoch_losses, trained.booster.injections[layer].tensors["vector"]))


def _reference_training(lm: Any, examples: Sequence[Any], layer: int) -> Measured:
    """The published procedure, plainly: one example at a time, no caching, the head and the loss at every position."""
    import torch

    start = time.perf_counter()
    model = lm.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    vector = torch.zeros(model.config.hidden_size, requires_grad=True)
    hook = model.get_decoder().layers[layer].register_forward_hook(lambda module, args, output: output + vector)
    optimiser = torch.optim.Adam([vector], lr=1e-2)
    losses = []
    for epoch in range(1, EPOCHS + 1):
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
    return Measured(time.perf_counter() - start, (losses, vector.detach()))


def _held_out(lm: Any, examples: Sequence[Any], layer: int, plain: Any, ours: Any) -> str:
    """Right answers with either vector on examples that neither was trained on, paired."""
    from aft_harness.boosters.booster import Booster
    from aft_harness.results.statistics import compare

    requests = [request for example in examples for request in example.requests]
    variants = [lm.steering_for(Booster.static({layer: vector})) for vector in (plain, ours)]
    right = []
    for results in lm.score_variants(requests, variants):
        sums = [score for score, _ in results]
        chosen = [sums[start : start + 4].index(max(sums[start : start + 4])) for start in range(0, len(sums), 4)]
        right.append([choice in example.gold for choice, example in zip(chosen, examples, strict=True)])
    paired = compare(*right)
    return (
        f"{paired.n} unseen questions: published {paired.baseline:.1%}, ours {paired.steered:.1%}, "
        f"exact McNemar p = {paired.p_value:.2g}; matrix products in bfloat16 are "
        f"{_peak('bfloat16') / _peak('float32'):.1f} times as fast as in float32"
    )


def _letters(lm: Any, docs: int) -> tuple[Any, list[Any]]:
    """HellaSwag rows as lettered questions whose answer is one letter: training examples, and as many unseen ones."""
    from aft_harness.harness.examples import Example, TaskExamples, TaskSelection, load_tasks

    ((_, task),) = load_tasks([TaskSelection("hellaswag")])
    examples = []
    for doc in task.validation_docs().select(range(2 * docs)):
        options = "\n".join(f"{letter}. {ending}" for letter, ending in zip("ABCD", doc["endings"], strict=True))
        prompt = f"Complete the sentence:\n{doc['ctx']}\n\n{options}\n\nThe best answer is:"
        requests = tuple(lm.encode(prompt, f" {letter}") for letter in "ABCD")
        examples.append(Example("letters", doc["ctx"], doc["ctx"], requests, (int(doc["label"]),), tuple("ABCD")))
    train, unseen = examples[:docs], examples[docs:]
    return TaskExamples("letters", "1.0", "choice", f"validation[0:{docs}]", 0, train, []), unseen


@cache
def _peak(dtype: str) -> float:
    """Floating-point operations a second of the fastest of some large matrix products."""
    import torch

    left, right = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def _tokens(encoded: Sequence[Any]) -> tuple[int, int]:
    """Distinct token prefixes, and how many of them predict a token of a continuation."""
    from aft_harness.engine import packing

    sequences, tails = [request.inputs for request in encoded], [len(request.continuation) for request in encoded]
    (row,) = packing.pack(sequences, tails, sum(map(len, sequences)))
    return len(row), len({column for tail in row.tails for column in tail.tolist()})


def _weights(lm: Any) -> tuple[int, int]:
    """Weights of a decoder layer's matrix products, and of the head's."""
    layer = sum(parameter.numel() for parameter in lm.engine.layers[0].parameters() if parameter.dim() == 2)
    return layer, lm.model.get_output_embeddings().weight.numel()


def _operations(lm: Any, requests: Sequence[Any]) -> float:
    tokens, predicting = _tokens([lm.encode(*request.args) for request in requests])
    layer, head = _weights(lm)
    return 2.0 * (tokens * layer * len(lm.engine.layers) + predicting * head)


def _training_operations(lm: Any, examples: Sequence[Any], trained: int) -> float:
    """Lower layers once; upper layers and the head at the answer forward and backward, each epoch."""
    answers = [example.requests[example.gold[0]] for example in examples]
    tokens, predicting = sum(len(request.inputs) for request in answers), len(answers)
    layer, head = _weights(lm)
    upper = len(lm.engine.layers) - trained - 1
    return 2.0 * tokens * layer * (trained + 1) + EPOCHS * 4.0 * (tokens * layer * upper + predicting * head)


@cache
def _lm(kind: str, dtype: str, steered: bool) -> Any:
    import torch
    from lm_eval.api.registry import get_model

    from aft_harness.boosters.booster import Booster
    from aft_harness.demo import model_folder

    arguments: dict[str, Any] = {"pretrained": str(model_folder()), "dtype": dtype, "batch_size": 16, "device": "cpu"}
    arguments["softmax_dtype"] = "float32"
    vector = _vector()
    if kind == "steered":
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            entry = {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", "bias": None}
            torch.save({"layers.15": {**entry, "head_index": None}}, file.name)
            return get_model(kind)(steer_path=file.name, **arguments)
    if steered:
        arguments["vector"] = Booster.static({15: vector})
    return get_model(kind)(**arguments)


def _vector() -> Any:
    import torch

    return 0.3 * torch.randn(576, generator=torch.Generator().manual_seed(0))


@cache
def _requests(task: str, shots: int, docs: int, sampler: str) -> tuple[list[Any], list[tuple[int, int, list[int]]]]:
    """lm-eval's own requests, and for each document where its requests start and end and how long its choices are."""
    from lm_eval.api.samplers import get_sampler

    from aft_harness.harness.examples import TaskSelection, load_tasks

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
    "arc_easy-5shot": lambda docs, reps: main_row("arc_easy", 5, "float32", "hf", docs // 2, reps),
    "arc_easy-5shot-first_n": lambda docs, reps: main_row("arc_easy", 5, "float32", "hf", docs // 2, reps, "first_n"),
    "hellaswag-strengths": lambda docs, reps: strengths_row("hellaswag", docs // 2, reps),
    "arc_easy-overhead": lambda docs, reps: overhead_row("arc_easy", docs // 10, reps),
    "training-letters": lambda docs, reps: training_row("float32", docs // 16 * 4, reps),
    "training-letters-bf16": lambda docs, reps: training_row("bfloat16", docs // 16 * 4, reps),
    "training-attention-bf16": lambda docs, reps: attention_row(docs // 16 * 4, reps),
    "gsm8k-generation": lambda docs, reps: generation_row(min(docs, 20), reps),
    "scaling-docs-quarter": lambda docs, reps: scaling_row("arc_easy", 0, None, docs // 4, reps),
    "scaling-docs-half": lambda docs, reps: scaling_row("arc_easy", 0, None, docs // 2, reps),
    "scaling-docs-all": lambda docs, reps: scaling_row("arc_easy", 0, None, docs, reps),
    "scaling-shots-2": lambda docs, reps: scaling_row("arc_easy", 2, None, docs // 4, reps),
    "scaling-shots-4": lambda docs, reps: scaling_row("arc_easy", 4, None, docs // 4, reps),
    "scaling-shots-8": lambda docs, reps: scaling_row("arc_easy", 8, None, docs // 4, reps),
    "scaling-choices-1": lambda docs, reps: scaling_row("hellaswag", 0, 1, docs // 2, reps),
    "scaling-choices-2": lambda docs, reps: scaling_row("hellaswag", 0, 2, docs // 2, reps),
    "scaling-choices-4": lambda docs, reps: scaling_row("hellaswag", 0, 4, docs // 2, reps),
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(WORKS)), help="Work to measure.  [default: all]")
@click.option("--docs", default=200, show_default=True, help="Documents; long works take a half or a quarter.")
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

    click.echo(f"{'work':<26}{'peer':<22}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'max |d|':>10}{'agree':>8}{'peak':>7}")
    for work in only or WORKS:
        outcome = WORKS[work](docs, reps)
        ratio = "" if outcome.theirs is None else f"{outcome.theirs / outcome.ours:.3f}"
        theirs = "" if outcome.theirs is None else f"{outcome.theirs:.3f}"
        difference = "" if outcome.difference is None else f"{outcome.difference:.1e}"
        agreement = "" if outcome.agreement is None else f"{outcome.agreement:.1%}"
        fraction = ""
        if outcome.operations is not None:
            fraction = f"{outcome.operations / outcome.ours / _peak(outcome.dtype):.2f}"
        click.echo(
            f"{work:<26}{outcome.peer:<22}{outcome.ours:>9.1f}{theirs[:-2]:>9}{ratio[:-1]:>8}"
            f"{difference:>10}{agreement:>8}{fraction:>7}  {outcome.note}"
        )
        row = (
            *(work, outcome.peer, outcome.dtype, outcome.documents, outcome.batch_size),
            *(f"{outcome.ours:.3f}", theirs, ratio, difference, agreement, fraction, outcome.note, reps),
            *(
                f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
                torch.__version__,
                lm_eval.__version__,
            ),
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
