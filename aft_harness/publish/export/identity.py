"""Which model a checkpoint folder holds: the identity that the loaded model would have, read off the files.

Knows checkpoint folders and skeletons of models. A few numbers of each tensor are read; no model is loaded.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from aft_harness.engine.skeleton import read_config, skeleton
from aft_harness.errors import ModelError
from aft_harness.publish.export.base import Base

if TYPE_CHECKING:
    from torch import Tensor

    from aft_harness.boosters.model_identity import ModelIdentity


def identity_of(base: Base) -> tuple[ModelIdentity, int]:
    """The identity of a checkpoint's model, and how many parameters it has.

    Of a model whose weights transformers renames or joins when it loads them, the fingerprint is unknown.

    Raises:
        ModelError: The folder has no configuration of a causal language model, or no weights that can be read.
    """
    from safetensors import SafetensorError, safe_open

    from aft_harness.engine.identity import identify

    model = skeleton(read_config(base.folder, base.label))
    files: dict[str, Any] = {}
    with ExitStack() as opened:

        def weight(parameter: str) -> Tensor | None:
            try:
                name = base.name_of(parameter, model.base_model_prefix)
                file = base.tensors[name].file
                if file not in files:  # mapped into memory, of which only what is looked at is read
                    files[file] = opened.enter_context(safe_open(base.folder / file, "pt"))
                found: Tensor = files[file].get_tensor(name)
            except (ModelError, SafetensorError):
                return None
            return found if found.shape == model.get_parameter(parameter).shape else None

        base.tensors  # noqa: B018  # raises where there are none
        return identify(model, base.label, weight), model.num_parameters()
