"""The home-made models of a work folder: their text, tokenizer and checkpoints, and what they will take.

Knows where things are kept. What is in the text stands in `text.py`, how a model is trained in `pretraining.py`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aft_harness.digests import digest
from aft_harness.files import make_folder, write_atomically, written_whole

from . import pretraining, text
from .prediction import predicted
from .tools import updated

TABLE = "home-made-models.csv"
REPORTED = 100
"""Steps between two lines about a pretraining."""

DTYPE, BATCH = "float32", 64
"""How the models are run: they are too small for half precision to save anything."""


@dataclass(frozen=True)
class Material:
    """What all models are made of.

    Attributes:
        folder: For everything that follows from the text and the recipe.
        recipe: Sizes, and how to train.
        tokenizer: Trained on the text.
        windows: The text as token ids, [windows, length].
    """

    folder: Path
    recipe: pretraining.Recipe
    tokenizer: PreTrainedTokenizerFast
    windows: Tensor

    @classmethod
    def of(cls, work: Path, recipe: pretraining.Recipe, amounts: text.Amounts | None = None) -> Material:
        """Makes text and tokenizer, or reads them where they are made already.

        Raises:
            AftError: Rows of a task cannot be loaded.
        """
        amounts = amounts or text.Amounts()
        folder = make_folder(work / "pretraining" / digest([asdict(amounts), asdict(recipe)])[:12])
        if not (place := folder / "text.json").is_file():
            made = text.documents(amounts, recipe.seed)
            write_atomically(place, json.dumps(made).encode())
        texts = [each for kind in json.loads(place.read_text(encoding="utf-8")).values() for each in kind]
        if not (kept := folder / "tokenizer").is_dir():
            with written_whole(kept) as temporary:
                pretraining.tokenizer_of(texts, recipe.vocabulary, recipe.length).save_pretrained(temporary)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
        return cls(folder, recipe, tokenizer, pretraining.windows_of(texts, tokenizer, recipe.length, recipe.seed))

    def place(self, kind: str) -> Path:
        """The folder of a model."""
        return self.folder / f"home-made-{kind}"

    def arguments(self, kind: str) -> dict[str, Any]:
        """Arguments of `--model steered-hf`."""
        return {"pretrained": str(self.place(kind)), "dtype": DTYPE, "batch_size": BATCH}

    def trained(self, kind: str, say: Callable[[str], None]) -> dict[str, Any]:
        """Trains a model, or reads how it was trained."""
        begin, steps, losses = time.perf_counter(), self.recipe.steps, []

        def on_step(step: int, loss: float) -> None:
            losses.append(loss)  # one for each step of this run, which may have begun in the middle
            if step % REPORTED == 0 or step == steps:
                left = (time.perf_counter() - begin) / len(losses) * (steps - step)
                recent = sum(losses[-REPORTED:]) / len(losses[-REPORTED:])
                say(f"home-made-{kind}: step {step} of {steps}, loss {recent:.2f}, {left / 60:.1f} min left")

        return pretraining.pretrain(kind, self.windows, self.tokenizer, self.recipe, self.place(kind), on_step)


def predictions(
    material: Material, kinds: Sequence[str], work: Path, plan_of: Callable[[dict[str, Any]], Any]
) -> Iterator[str]:
    """What pretraining takes, and then the study: tried with the first kind, as all have the same size."""
    left = [kind for kind in kinds if not (material.place(kind) / pretraining.RECORD).is_file()]
    if left:
        seconds = pretraining.seconds_of_step(left[0], material.windows, material.recipe) * material.recipe.steps
        yield (
            f"pretraining: {len(left)} models about {seconds / 60:.1f} min each "
            f"({material.recipe.tokens / 1e6:.1f} million tokens, {torch.get_num_threads()} threads)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        pretraining.config(kinds[0], material.recipe).save_pretrained(scratch)
        material.tokenizer.save_pretrained(scratch)
        plan = plan_of({**material.arguments(kinds[0]), "pretrained": scratch})
        name = f"home-made-{kinds[0]}"
        found = predicted(plan, work, name, key=f"{name} {material.folder.name}")
    yield str(found)
    whole = (found.training + found.evaluation) * len(kinds) + (seconds * len(left) if left else 0.0)
    yield f"{len(kinds)} models: about {whole / 60:.0f} min in all where nothing is finished yet"


def record(output: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes down how models were made; what is there of other kinds stays."""
    rows = []
    for found in records:
        plain = {name: value for name, value in found.items() if name != "recipe"}
        rows.append({**plain, "steps": found["recipe"]["steps"]})
    updated(output / TABLE, rows, "kind", pretraining.KINDS)


def lines(output: Path) -> list[str]:
    """The table of how the models were made, in Markdown."""
    found = [
        "| model | weights | tokens learned | loss on held-out text, nats a token | minutes |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in pd.read_csv(output / TABLE).to_dict("records"):
        sizes = f"{row['parameters'] / 1e6:.1f}M | {row['tokens'] / 1e6:.1f}M"
        found.append(f"| home-made-{row['kind']} | {sizes} | {row['held_out_loss']:.2f} | {row['seconds'] / 60:.1f} |")
    return found
