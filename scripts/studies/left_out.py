"""What the boosters of leave_one_out.yaml compare with: LoRA on the same documents, and examples in the prompt.

    python scripts/studies/left_out.py --output leaderboards/transfer/left-out-peers.csv

LoRA (PEFT's, r=8 on every linear map, trained by the loop that trains boosters) learns what each booster of the plan
learns, and is asked the task that was left out. Its learning rate is the better of two on development documents: 20 of
each of the six tasks, after learning the plan's mixture of all six. Five-shot is the unchanged model with five examples
of the very task in its prompt. One seed; rows that the table holds are not computed again. Needs the real rows.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd

from aft_harness.cli.app import Group
from aft_harness.studies.plan import Plan

PLAN = Path(__file__).parent / "leave_one_out.yaml"
METHOD, SHOTS = "LoRA r=8", 5
MIXTURE, WITHOUT = "all-six", "without-"
"""The plan's booster that learns every task, and what the names of the others begin with."""

DEVELOPMENT = 20
"""Development documents of each task."""

METRICS = ("acc", "acc_norm")
SEED = 0


def plan() -> Plan:
    """The plan, on the embedded model."""
    from aft_harness.demo import model_folder

    arguments = {"pretrained": str(model_folder()), "dtype": "bfloat16", "softmax_dtype": "float32", "batch_size": 16}
    return replace(Plan.read(PLAN, [arguments]), seeds=(SEED,))


def study() -> Any:
    """The plan's study: its model, and the documents of each training."""
    import torch

    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.studies.transfer import Study

    torch.set_num_threads(1)  # as many cells as cores run side by side
    asked = plan()
    return Study(SteeredHFLM(**asked.models[0]), asked, Path())


def outcomes(lm: Any, asked: Any, source: Any, shots: int | None = None) -> dict[str, dict[int, float]]:
    """What the model scores on the documents of an evaluation, by metric and document."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.selection import PromptFormat

    how = PromptFormat(num_fewshot=shots)
    (found,) = evaluate(lm, [BASELINE], [asked.task], how, source=source, limit=asked.limit, docs=asked.slice)
    lines = found.results["samples"][asked.task]
    return {name: {line["doc_id"]: float(line[name]) for line in lines} for name in METRICS if name in lines[0]}


def tried(rate: float) -> tuple[float, float]:
    """Share of the development documents that are answered correctly with a learning rate, and their loss."""
    from comparison.adapters import learn

    from aft_harness.harness.examples import draw

    found = study()
    selections = [replace(each, dev_docs=DEVELOPMENT) for each in found.plan.sources[MIXTURE]]
    tasks = draw(selections, found.lm, source=found.tasks, split_seed=found.plan.settings.split_seed)
    score = learn(found.lm, tasks, METHOD, SEED, rate, None).score
    return score.accuracy, score.loss


def compared(method: str, task: str, rate: float | None) -> list[dict[str, Any]]:
    """A row for each metric: a method against the unchanged model, on a task that it has not learned."""
    from comparison.adapters import learn

    from aft_harness.results.statistics import compare

    found = study()
    (asked,) = (each for each in found.plan.evaluations if each.task == task)
    before = outcomes(found.lm, asked, found.tasks)
    row: dict[str, Any] = {"method": method, "task": task, "rate": rate, "parameters": 0, "seconds": None}
    if method == METHOD:
        assert rate is not None
        (cell,) = (each for each in found.trainings if each.name == WITHOUT + task)
        learned = learn(found.lm, cell.tasks, METHOD, SEED, rate, None)
        row |= {"parameters": learned.parameters, "seconds": round(learned.seconds)}
        after = outcomes(found.lm, asked, found.tasks)
    else:
        after = outcomes(found.lm, asked, found.tasks, SHOTS)
    made = []
    for metric, values in before.items():
        paired = compare(list(values.values()), [after[metric][document] for document in values])
        made.append({**row, "metric": metric, **asdict(paired), "delta": paired.delta})
    return made


def write(output: Path, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Writes the table, with p-values that are corrected for the number of rows by `acc`."""
    from aft_harness.files import write_atomically
    from aft_harness.results.statistics import holm

    table = pd.DataFrame(rows).sort_values(["method", "task", "metric"], ignore_index=True)
    first = table["metric"] == METRICS[0]
    table.loc[first, "p_holm"] = holm(table.loc[first, "p_value"].tolist())
    write_atomically(output, table.to_csv(index=False).encode())


@click.command(cls=Group.command_class)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The table, a CSV file.")
@click.option("--rate", type=float, help="LoRA's learning rate.  [default: the better on development documents]")
@click.option("--jobs", default=os.cpu_count() or 1, show_default="cores", help="Cells that run at a time.")
def main(output: Path, rate: float | None, jobs: int) -> None:
    """Measure LoRA and five-shot prompts on the tasks that boosters did not learn."""
    from comparison.adapters import RATES

    os.environ.update({"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"})
    rows: list[dict[Any, Any]] = pd.read_csv(output).to_dict("records") if output.exists() else []
    done = {(row["method"], row["task"]) for row in rows}
    tasks = [name.removeprefix(WITHOUT) for name in plan().sources if name.startswith(WITHOUT)]
    left = [(method, task) for task in tasks for method in (METHOD, "five-shot") if (method, task) not in done]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes:
        if rate is None and any(method == METHOD for method, _ in left):
            scores = dict(zip(RATES[METHOD], processes.map(tried, RATES[METHOD]), strict=True))
            rate = max(scores, key=lambda each: (scores[each][0], -scores[each][1]))
            click.echo(f"{METHOD}, correct and loss on development documents: {scores}; rate {rate:g}")
        running = [
            processes.submit(compared, method, task, rate if method == METHOD else None) for method, task in left
        ]
        for future in as_completed(running):
            rows += future.result()
            write(output, rows)
            click.echo("  ".join(f"{name}={value}" for name, value in rows[-1].items()))


if __name__ == "__main__":
    main()
