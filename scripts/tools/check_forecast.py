"""Compares what `--dry-run` says of memory and time with what trainings and evaluations take: `make verify-forecast`.

The embedded SmolLM2-135M and random Llama models of growing size, with its tokenizer, learn from real rows or are
evaluated on them (HF_DATASETS_CACHE must name a cache that holds them, or be online). Each forecast and each run is a
process of its own; the peak of its memory is the operating system's figure. Writes `leaderboards/cost/forecasts.csv`
and the table in `docs/cost.md`.

    python scripts/tools/check_forecast.py
    python scripts/tools/check_forecast.py --only smollm2-arc_easy-float32
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
from processes import in_a_process
from tables import put, updated

from aft_harness.harness.selection import PromptFormat

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "cost" / "forecasts.csv"
PAGE = ROOT / "docs" / "cost.md"
BEGIN, END = "<!-- forecasts: scripts/tools/check_forecast.py -->", "<!-- end of forecasts -->"


@dataclass(frozen=True)
class Case:
    """A training or an evaluation.

    Attributes:
        model: Hidden size and number of layers of a random Llama, or the published configuration that a random model
            has; None is the embedded model.
        arguments: Of `aft.train`, or of `aft.evaluate` where there are boosters.
    """

    model: tuple[int, int] | str | None
    arguments: dict[str, Any]

    @property
    def is_evaluation(self) -> bool:
        """Whether nothing is learned."""
        return "boosters" in self.arguments


def case(task: str, limit: int, dtype: str, model: tuple[int, int] | str | None = None, **further: Any) -> Case:
    """A case with one epoch, unless another number is given."""
    asked = {"tasks": task, "include_path": [ROOT / "tasks"], "limit": limit, "model_args": {"dtype": dtype}}
    return Case(model, {**asked, **({} if "boosters" in further else {"epochs": 1}), **further})


CASES = {
    "smollm2-arc_easy-bfloat16": case("arc_easy", 100, "bfloat16", epochs=2),
    "smollm2-arc_easy-float32": case("arc_easy", 100, "float32", dev_docs=32),
    "smollm2-gsm8k_solution-bfloat16": case("gsm8k_solution", 48, "bfloat16"),
    "smollm2-gsm8k_solution-upper": case("gsm8k_solution", 48, "bfloat16", layers="15-"),
    "smollm2-hellaswag-1.6GiB": case("hellaswag", 48, "bfloat16", memory=int(1.6 * 2**30)),
    "random-512x8-arc_easy": case("arc_easy", 100, "bfloat16", (512, 8)),
    "random-1024x16-arc_easy": case("arc_easy", 48, "bfloat16", (1024, 16)),
    "random-2048x16-arc_easy": case("arc_easy", 32, "bfloat16", (2048, 16)),
    "phi-2-hellaswag-8GB": case(
        "hellaswag", 4, "bfloat16", "phi-2", prompt_format=PromptFormat(num_fewshot=4), memory=8 * 10**9
    ),
    "evaluation-hellaswag": case("hellaswag", 100, "bfloat16", boosters=["smollm2-135m-arc-easy"]),
    "evaluation-gsm8k_easy_gen": case("gsm8k_easy_gen", 48, "bfloat16", boosters=["smollm2-135m-arc-easy"]),
}


def random_model(folder: Path, size: tuple[int, int] | str) -> dict[str, float]:
    """Writes a model in bfloat16 with random weights and the embedded model's tokenizer."""
    import torch
    from models.kinds import ROADMAP
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

    from aft_harness.demo import model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    if isinstance(size, str):
        config: PreTrainedConfig = AutoConfig.for_model(**ROADMAP[size])
    else:
        hidden, layers = size
        config = AutoConfig.for_model(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 128,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {}


def forecast(model: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """What is said before."""
    import aft_harness as aft

    begun = time.perf_counter()
    found = (aft.forecast_evaluation if "boosters" in arguments else aft.forecast)(model, **arguments)
    return {"memory": found.peak, "seconds": found.duration, "took": time.perf_counter() - begun}


def training(model: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """What it takes."""
    import aft_harness as aft

    return {"seconds": aft.train(model, **arguments).seconds}


def evaluation(model: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """What it takes once the model is loaded."""
    import aft_harness as aft

    with aft.opened(model, **arguments["model_args"]) as lm:
        begun = time.perf_counter()
        aft.evaluate(lm.model, lm.tokenizer, **{**arguments, "model_args": {}})
        return {"seconds": time.perf_counter() - begun}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Case to check.  [default: all]")
def main(only: tuple[str, ...]) -> None:
    """Compare forecasts with what trainings and evaluations take."""
    from aft_harness.demo import model_folder

    for name in only or CASES:
        asked = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            model = model_folder()
            if (size := asked.model) is not None:
                in_a_process(lambda: random_model(place, size))  # noqa: B023
                model = place
            predicted = in_a_process(lambda: forecast(model, asked.arguments))  # noqa: B023
            run = evaluation if asked.is_evaluation else training
            measured = in_a_process(lambda: run(model, asked.arguments))  # noqa: B023
        row = {
            "case": name,
            "memory_forecast": round(predicted["memory"] / 2**30, 3),
            "memory_measured": round(measured["peak"] / 2**30, 3),
            "memory_of_forecast": round(predicted["peak"] / 2**30, 3),
            "seconds_forecast": round(predicted["seconds"], 1),
            "seconds_measured": round(measured["seconds"], 1),
            "seconds_of_forecast": round(predicted["took"], 1),
        }
        click.echo(json.dumps(row))
        table = updated(OUTPUT, [row], "case", list(CASES))
        write_page(table)
    wrong = table[(table["memory_forecast"] / table["memory_measured"] - 1).abs() > 0.2]
    if len(wrong):
        click.echo(f"more than 20% off: {', '.join(wrong['case'])}", err=True)
        sys.exit(1)


def write_page(table: pd.DataFrame) -> None:
    """Puts the table into the page."""
    lines = ["| run | memory, GiB | forecast | time, s | forecast |", "|---|--:|--:|--:|--:|"]
    for row in table.to_dict("records"):
        memory = f"{row['memory_measured']:.2f} | {row['memory_forecast']:.2f}"
        lines.append(f"| {row['case']} | {memory} | {row['seconds_measured']:.0f} | {row['seconds_forecast']:.0f} |")
    put(PAGE, BEGIN, END, lines)


if __name__ == "__main__":
    main()
