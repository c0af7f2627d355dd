"""Where should a static booster act: at which place of a layer, and at which positions? On development documents.

    python scripts/studies/sites.py --output leaderboards/recipe/sites.csv

Every run has the default recipe's layers, loss, rate and schedule, and keeps nothing on plain text: which positions are
steered there would be another question. What differs is the place: the output of the layer (what the library does), of
its attention, or of its value projection; and the positions: all, those that predict the answer (from the prompt's last
token on), or the answer's own tokens. A constant that is added to every value is one that is added to the attention's
output, because attention weights add up to 1; the place `value` is thus a reparametrisation of `attention`.

The library has no such places: this script hooks the model itself. Runs that the table holds are not repeated.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd

if TYPE_CHECKING:
    import torch

    from aft_harness.engine.rows import Batch
    from aft_harness.harness.examples import TaskExamples
    from aft_harness.training.prepared_objective import PreparedObjective
    from aft_harness.training.recipe import ChoiceNorm

RUNS = (
    ("layer", "all", 1.0),
    ("layer", "predicting", 1.0),
    ("layer", "answer", 1.0),
    ("attention", "all", 1.0),
    ("attention", "predicting", 1.0),
    ("value", "all", 1.0),
    ("value", "all", 3.0),
)
"""Place, positions, and a factor on the default learning rate."""

NORMS: dict[str, ChoiceNorm] = {"acc": "none", "acc_norm": "characters"}
"""How choices are ranked by each metric."""

LOWEST = 1
"""The lowest layer that is steered, as in the default recipe."""


def module_at(layer: Any, place: str) -> Any:
    """The module of a Llama-like layer whose output is changed."""
    return {"layer": layer, "attention": layer.self_attn, "value": layer.self_attn.v_proj}[place]


def chosen(batch: Batch, positions: str) -> torch.Tensor:
    """The columns of a batch that are steered, bool [rows, width]."""
    import torch

    keep = torch.ones_like(batch.input_ids, dtype=torch.bool)
    if positions != "all":
        keep[:] = False
        for place, row in enumerate(batch.rows):
            for tail in row.tails:  # the columns that predict a continuation; the first is the prompt's last token
                keep[place, tail if positions == "predicting" else tail[1:]] = True
    return keep


@contextmanager
def steered(lm: Any, vectors: dict[int, torch.Tensor], place: str, positions: str) -> Iterator[None]:
    """In this block vectors are added at a place of their layers and at some positions."""
    forward = lm.engine.forward_pass
    mask: list[torch.Tensor] = []

    def run(batch: Batch, **kwargs: Any) -> Any:
        mask[:] = [chosen(batch, positions).unsqueeze(-1)]
        return type(forward).run(forward, batch, **kwargs)

    def hook(vector: torch.Tensor) -> Callable[[Any, Any, Any], Any]:
        def added(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = hidden + mask[0].to(hidden.dtype) * vector.to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return added

    handles = [
        module_at(lm.engine.layers[layer], place).register_forward_hook(hook(vector))
        for layer, vector in vectors.items()
    ]
    forward.run = run
    try:
        yield
    finally:
        del forward.run
        for handle in handles:
            handle.remove()


def sizes(lm: Any, objective: PreparedObjective, place: str) -> dict[int, tuple[int, float]]:
    """By layer, the width of what comes out of a place, and the size that rates are relative to.

    That is the typical size of a number of the residual stream, and of a value for the value projection.
    """
    from aft_harness.training.optimiser import residual_scale

    found: dict[int, tuple[int, float]] = {}

    def hook(layer: int) -> Callable[[Any, Any, Any], None]:
        def seen(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[layer] = (hidden.shape[-1], residual_scale(hidden.flatten(0, -2)))

        return seen

    measured = "value" if place == "value" else "layer"
    layers = range(LOWEST, len(lm.engine.layers))
    handles = [module_at(lm.engine.layers[layer], measured).register_forward_hook(hook(layer)) for layer in layers]
    try:
        objective.prepared.residual(list(layers), objective.train[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def run(lm: Any, examples: TaskExamples, place: str, positions: str, factor: float, seed: int) -> dict[str, Any]:
    """Learns vectors at a place and says how they do on development documents."""
    import torch

    from aft_harness.engine.footprint import footprint
    from aft_harness.progress import ignore
    from aft_harness.training.groundwork import frozen
    from aft_harness.training.hidden_states import HiddenStates
    from aft_harness.training.loop import EpochLosses, run_epoch
    from aft_harness.training.optimiser import scheduler
    from aft_harness.training.prepared_objective import PreparedObjective
    from aft_harness.training.recipe import Settings

    settings = Settings(seed=seed, keep=0.0)
    start = time.perf_counter()
    with HiddenStates(2 * 2**30) as hidden, frozen(lm.model), lm.engine.differentiated():
        objective = PreparedObjective(lm.engine, [examples], settings)
        objective.prepared.cache(LOWEST - 1, hidden)
        objective.prepared.bound(footprint(lm.engine, LOWEST - 1), 2**30)
        unchanged = correct(objective)
        places = sizes(lm, objective, place)
        vectors = {layer: torch.zeros(width, requires_grad=True) for layer, (width, _) in places.items()}
        rates = {layer: factor * settings.lr * size / len(places) for layer, (_, size) in places.items()}
        adam = torch.optim.Adam([{"params": [vectors[layer]], "lr": rates[layer]} for layer in vectors])
        steps = settings.epochs * math.ceil(len(objective.train) / settings.batch_size)
        schedule = scheduler(adam, settings.schedule, steps)
        with steered(lm, vectors, place, positions):
            for epoch in range(1, settings.epochs + 1):
                losses = EpochLosses()
                run_epoch(objective, objective.train, settings, schedule, epoch, losses, lambda: True, ignore)
            after = correct(objective)
    return {
        "place": place,
        "positions": positions,
        "rate": factor * settings.lr,
        "seed": seed,
        "parameters": sum(vector.numel() for vector in vectors.values()),
        "development_n": len(objective.development),
        "unchanged_acc": sum(unchanged["acc"]) / len(unchanged["acc"]),
        "acc": sum(after["acc"]) / len(after["acc"]),
        "acc_norm": sum(after["acc_norm"]) / len(after["acc_norm"]),
        "loss": after["loss"],
        "training_loss": losses.mean,
        "seconds": round(time.perf_counter() - start, 1),
        "correct": "".join(str(int(value)) for value in after["acc"]),
    }


def correct(objective: PreparedObjective) -> dict[str, Any]:
    """Of each development document, whether it is answered correctly as `acc` and as `acc_norm` rank; the mean loss."""
    import torch

    from aft_harness.training.objective import TaskObjective

    found: dict[str, Any] = {"acc": [], "acc_norm": []}
    losses = []
    with torch.no_grad():
        for chunk in objective.prepared.chunks(objective.development):
            for index, part in zip(chunk, objective.prepared.loglikelihoods(chunk), strict=True):
                for metric, norm in NORMS.items():
                    outcome = TaskObjective("choice", norm).outcome(objective.examples[index], part)
                    found[metric].append(bool(outcome.right))
                    if metric == "acc":
                        losses.append(float(outcome.loss))
    return {**found, "loss": sum(losses) / len(losses)}


@click.command()
@click.option("--task", default="arc_easy", show_default=True, help="What is learned.")
@click.option("--limit", type=int, default=300, show_default=True, help="Training documents.")
@click.option(
    "--dev-docs",
    default="validation",
    show_default=True,
    help="Rows that nothing evaluates, as SPLIT[a:b], or how many of the training split.",
)
@click.option("--seeds", default="0", show_default=True, help="Seeds, e.g. 0,1,2.")
@click.option("--only", multiple=True, help="PLACE:POSITIONS; may be repeated.")
@click.option("--model", help="Hub id or folder.  [default: the demo model SmolLM2-135M-Instruct]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The table, a CSV file.")
def main(
    task: str, limit: int, dev_docs: str, seeds: str, only: tuple[str, ...], model: str | None, output: Path
) -> None:
    """Compare places and positions on development documents."""
    from aft_harness.cli.terminal import quiet

    os.environ.setdefault("TQDM_DISABLE", "1")
    table = pd.read_csv(output, dtype={"correct": str}) if output.exists() else pd.DataFrame()
    with quiet():
        from documents import training_and_development

        from aft_harness.demo import model_folder
        from aft_harness.files import write_atomically
        from aft_harness.harness.model import SteeredHFLM

        lm = SteeredHFLM(model or str(model_folder()), dtype="bfloat16", softmax_dtype="float32", batch_size=16)
        examples = training_and_development(lm, task, limit, int(dev_docs) if dev_docs.isdigit() else dev_docs)
        for seed, (place, positions, factor) in itertools.product(map(int, seeds.split(",")), RUNS):
            if only and f"{place}:{positions}" not in only:
                continue
            done = table[table["task"] == task] if len(table) else table
            keys = {"place": place, "positions": positions, "seed": seed}
            if any(
                all(row[name] == value for name, value in keys.items()) and math.isclose(row["rate"], factor * 0.05)
                for _, row in done.iterrows()
            ):
                continue
            row = {"task": task, "n_train": len(examples.train), **run(lm, examples, place, positions, factor, seed)}
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            write_atomically(output, table.to_csv(index=False).encode())
            click.echo(" ".join(f"{name}={value}" for name, value in row.items() if name != "correct"))


if __name__ == "__main__":
    main()
