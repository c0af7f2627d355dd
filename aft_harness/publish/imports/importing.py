"""From a file or folder of another tool to a booster: which format it is, by its content, and what is recorded of it.

Knows formats by their modules. A model, where one is given, says whether the vectors fit it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.file_format import SIZE_LIMIT
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.provenance import Provenance
from aft_harness.boosters.variant import Variant
from aft_harness.engine.steering import recorded
from aft_harness.errors import AftError, BoosterError
from aft_harness.files import exists, read_regular
from aft_harness.publish.export.origin import MODEL
from aft_harness.publish.export.site import biased
from aft_harness.publish.export.target import RECORD
from aft_harness.publish.imports import control_vector, peft_folder, torch_file
from aft_harness.publish.imports.foreign import Foreign
from aft_harness.versions import versions

if TYPE_CHECKING:
    from aft_harness.harness.model import SteeredHFLM

METHOD = "imported"
"""How provenance calls the way in which such boosters were made."""

KNOWN = (
    "a llama.cpp control vector (GGUF), lm-eval's steered .pt, a .pt of (layers, hidden), or a PEFT adapter's folder"
)


def import_booster(path: str | os.PathLike[str], model: SteeredHFLM | None = None) -> Booster:
    """The booster that a file or folder of another tool holds.

    Args:
        path: Of a control vector of llama.cpp or repeng, of a `.pt` of lm-eval's `steered` or of hotwire, or of the
            folder of a PEFT adapter that is nothing but biases.
        model: The model that it is for: its identity is recorded, and whether the vectors fit it is checked.

    Raises:
        BoosterError: With the path and the reason, whatever is wrong with it.
    """
    path = Path(path)
    try:
        foreign, digest = _read(path)
        if foreign.modules and model is None and not foreign.origin:
            raise BoosterError(
                f"is a {foreign.format}, whose biases stand inside the layers: name the model (--model), so that it "
                "can be checked that they do what a booster does"
            )
        booster = Booster.static(foreign.vectors, _provenance(foreign, digest, model))
        if model is not None:
            model.steering_for(Variant(path.name, booster))
            for layer, module in foreign.modules.items():
                _check_equal(model, layer, module, foreign.vectors[layer])
    except (AftError, OSError) as error:
        raise BoosterError(f"{path}: {error}") from None
    return booster


def _read(path: Path) -> tuple[Foreign, str]:
    if exists(path) and path.is_dir():
        return _read_folder(path)
    data = read_regular(path, SIZE_LIMIT)
    digest = hashlib.sha256(data).hexdigest()
    for reader in (control_vector, torch_file):
        if reader.recognised(data):
            return reader.read(data), digest
    if data[8:9] == b"{":
        raise BoosterError("is a safetensors file: a booster needs no import, and of a PEFT adapter give the folder")
    raise BoosterError(f"is of no format that can be imported; expected {KNOWN}")


def _read_folder(path: Path) -> tuple[Foreign, str]:
    if not exists(path / peft_folder.CONFIG):
        raise BoosterError(f"is a folder without {peft_folder.CONFIG}; expected {KNOWN}")
    if not exists(path / peft_folder.WEIGHTS):
        raise BoosterError(f"is an adapter without {peft_folder.WEIGHTS}; adapters that are pickles are not read")
    config = read_regular(path / peft_folder.CONFIG, 2**20)
    weights = read_regular(path / peft_folder.WEIGHTS, SIZE_LIMIT)
    try:
        origin = json.loads(read_regular(path / RECORD, 2**20)) if exists(path / RECORD) else {}
    except (ValueError, RecursionError):
        origin = {}
    foreign = peft_folder.read(config, weights, origin if isinstance(origin, dict) else {})
    return foreign, hashlib.sha256(weights).hexdigest()


def _provenance(foreign: Foreign, digest: str, model: SteeredHFLM | None) -> dict[str, Any]:
    base = _recorded_base(foreign) if model is None else model.base_model
    return {
        "method": METHOD,
        "imported": {"format": foreign.format, "sha256": digest},
        **({} if base is None else {"base_model": base.model_dump(mode="json")}),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _recorded_base(foreign: Foreign) -> ModelIdentity | None:
    """The base model that an export of this package names; what cannot be one is passed over."""
    recorded = foreign.origin.get(MODEL)
    if not isinstance(recorded, dict):
        return None
    try:
        return Provenance.of({"base_model": recorded}).base_model
    except BoosterError:
        return None


@torch.no_grad()
def _check_equal(model: SteeredHFLM, layer: int, module: str, vector: Tensor) -> None:
    """Measures that a bias of a module changes its layer's output by just that bias: no norm or factor follows it.

    Raises:
        BoosterError: There is no such module, or it does not.
    """
    layers = model.engine.layers
    tokens = torch.tensor([[1, 2, 3, 4]], device=model.device)
    with recorded(layers, layer) as outputs:
        model.model(tokens)
        try:
            with biased(model.model, module, {layer: vector}):
                model.model(tokens)
        except AttributeError:
            raise BoosterError(f"layer {layer} of the model has no {module}") from None
    plain, steered = (output.detach().float().cpu() for output in outputs)
    change = steered - plain
    # What a number of the model's dtype is rounded to, of the largest that is added up.
    eps = torch.finfo(model.model.dtype).eps
    allowed = 8 * eps * (plain.abs().amax(dim=-1, keepdim=True) + vector.abs().max()).max()
    if not torch.allclose(change, vector.expand_as(change), rtol=0, atol=float(allowed)):
        raise BoosterError(
            f"a bias of {module} does not change the output of layer {layer} by itself (a norm or a factor follows), "
            "so that this adapter is no booster of this model"
        )
