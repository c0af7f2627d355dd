"""The exports to checkpoints, PEFT adapters and lm-eval's `steered`, under the stock model types of lm-eval.

Knows lm-eval's `hf` and `steered`; nothing of ours takes part once the export is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports.material import COMPARED, Answers, Material
from lm_eval.models.hf_steered import SteeredModel
from lm_eval.models.huggingface import HFLM

from aft_harness.demo import model_folder
from aft_harness.publish.export.registry import export

CASES = {"all": "layers 0-29", "single": "layer 12"}
"""Boosters, and what the table calls them."""


def verified(material: Material, environments: Path) -> Iterator[dict[str, Any]]:
    """A row of the table for each export."""
    base, folder = str(model_folder()), material.folder
    boosters = {name: material.booster(name) for name in CASES}
    reference = material.reference(boosters)
    tools = {"hf": f"lm_eval {version('lm_eval')}, hf", "steered": f"lm_eval {version('lm_eval')}, steered"}
    tools["peft"] = f"{tools['hf']} with peft {version('peft')}"
    common = {"dtype": "float32", "device": "cpu", "batch_size": 8, "softmax_dtype": "float32"}

    unsteered = answers(material, HFLM(base, **common))

    def row(engine: str, target: str, name: str, given: Answers) -> dict[str, Any]:
        labels = {"engine": engine, "target": target, "weights": "float32", "booster": CASES.get(name, "none")}
        labels["against"] = "steered-hf"
        found = labels | material.compared(reference[name], given, reference[""])
        return found | material.gain(unsteered, given) if name else found

    yield row(tools["hf"], "none", "", unsteered)
    for name, booster in boosters.items():
        checkpoint = export("checkpoint", booster, folder / f"{name}-checkpoint", model=base, overwrite=True).path
        yield row(tools["hf"], "checkpoint", name, answers(material, HFLM(str(checkpoint), **common)))
        for form in ("beft", "lora"):
            written = export("peft", booster, folder / f"{name}-{form}", model=base, form=form, overwrite=True)
            yield row(
                tools["peft"], f"peft, {form}", name, answers(material, HFLM(base, peft=str(written.path), **common))
            )
        file = export("lm-eval", booster, folder / f"{name}.pt", overwrite=True).path
        yield row(tools["steered"], "lm-eval", name, answers(material, SteeredModel(base, str(file), **common)))


@torch.no_grad()
def answers(material: Material, lm: Any) -> Answers:
    """What a stock model type gives."""
    asked = [(None, tokens[:start], tokens[start:]) for tokens, start in material.rows]
    scores = [score for score, _ in lm._loglikelihood_tokens(asked, disable_tqdm=True)]
    rows = [tokens[:-1] for tokens, _ in material.rows[:COMPARED]]
    logits = [lm._model_call(torch.tensor([tokens], device=lm.device))[0].float().numpy() for tokens in rows]
    return Answers(np.array(scores), np.concatenate(logits))
