"""What test_processes.py runs under `accelerate launch`, and alone: a training, then the stock lm_eval.

side_by_side.py MODEL TASKS BOOSTER FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate

import aft_harness as aft
from aft_harness.engine.continuous import Writer
from aft_harness.engine.scoring import Engine


def train(model: str, tasks: str) -> tuple[Any, list[list[float]]]:
    """Trains a booster, and notes the gradient of each step."""
    gradients: list[list[float]] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *arguments: Any, **options: Any) -> Any:
        found = [part.grad.flatten() for group in self.param_groups for part in group["params"]]
        gradients.append(torch.cat(found).tolist())
        return step(self, *arguments, **options)

    patched: Any = torch.optim.Adam
    patched.step = noted
    result = aft.train(
        model,
        tasks=["toy_choice", "toy_text"],
        include_path=[tasks],
        limit=9,
        dev_docs=3,
        epochs=2,
        batch_size=4,
        lr=0.05,
        keep=0.5,
        model_args={"device": "cpu", "dtype": "float64"},
    )
    return result, gradients


def evaluate(model: str, tasks: str, vector: str, folder: Path) -> dict[str, int]:
    """Runs the stock command, and counts the requests and texts that this process runs."""
    counts = {"requests": 0, "texts": 0}
    score, write = Engine.loglikelihoods, Writer.write

    def requests(self: Engine, asked: Any, most: int, *, on_scored: Any = None, **options: Any) -> Any:
        if on_scored is None:  # what a model is able to do is found out by each process
            return score(self, asked, most, **options)

        def record(members: Any, found: Any) -> None:
            counts["requests"] += len(members)
            on_scored(members, found)

        return score(self, asked, most, on_scored=record, **options)

    def texts(self: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        counts["texts"] += len(prompts)
        return write(self, prompts, *arguments, **options)

    patched: Any = (Engine, Writer)
    patched[0].loglikelihoods, patched[1].write = requests, texts
    sys.argv = ["lm_eval", "--model", "steered-hf", "--model_args", f"pretrained={model},vector={vector}"]
    sys.argv += ["--tasks", "toy_choice,toy_text,toy_rolling", "--include_path", tasks, "--batch_size", "2"]
    sys.argv += ["--device", "cpu", "--log_samples", "--output_path", str(folder / "results")]
    cli_evaluate()
    return counts


if __name__ == "__main__":
    rank = int(os.environ.get("RANK", "0"))
    given, suite, booster, place = *sys.argv[1:4], Path(sys.argv[4])
    trained, steps = train(given, suite)
    record: dict[str, Any] = {
        "sha256": trained.booster.sha256,
        "gradients": steps,
        "losses": list(trained.epoch_losses),
        "step_losses": trained.losses["loss"].tolist(),
        "divergence": trained.losses["divergence"].tolist(),
        "before": trained.before.loss,
        "after": trained.after.loss,
        "counts": evaluate(given, suite, booster, place),
    }
    (place / f"record-{rank}.json").write_text(json.dumps(record))
