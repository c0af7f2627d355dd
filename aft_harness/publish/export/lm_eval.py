"""`aft export lm-eval`: a `.pt` file for lm-eval's own `--model steered`, which then does what `steered-hf` does.

Knows that model type's file: a dictionary by the dotted name of each module whose output is changed. lm-eval reads it
with pickle allowed; it holds tensors, numbers and text alone, so that `torch.load(weights_only=True)` reads it too.
"""

from __future__ import annotations

import io
import shlex

from aft_harness.errors import ExportError, ModelError
from aft_harness.publish.export.target import Exported, Option, Order, Target


def write(order: Order, *, model: str | None) -> Exported:
    """Writes the file; see `TARGET`."""
    import torch

    from aft_harness.engine.decoder import decoder_layers
    from aft_harness.engine.skeleton import read_config, recorded_kind, skeleton
    from aft_harness.engine.steering import Steering

    vectors = order.vectors
    if model is None:
        try:
            kind = recorded_kind(order.booster.provenance.base_model)
        except ModelError as error:
            raise ExportError(f"{order.variant.name}: {error}") from None
    else:
        kind = skeleton(read_config(model))
        Steering(kind, order.booster)  # refuses a booster of another width or depth
    layers = decoder_layers(kind)
    names = {id(module): name for name, module in kind.base_model.named_modules()}
    content = io.BytesIO()  # torch's own writer has no message for a full disk
    torch.save(
        {
            names[id(layers[layer])]: {
                "steering_vector": vector,
                "steering_coefficient": 1.0,  # the strength is in the vector, which is then rounded once
                "action": "add",
                "bias": None,
                "head_index": None,
            }
            for layer, vector in vectors.items()
        },
        content,
    )
    order.place.write_bytes(content.getbuffer())
    pretrained = shlex.quote(f"pretrained={model or 'MODEL'},steer_path={order.output}")
    return Exported(
        order.output,
        use=f"lm_eval --model steered --model_args {pretrained} --tasks TASKS",
        check="Scores are those of `--model steered-hf` with `vector=`, not those of `--model hf`. A module that the "
        "model lacks\nends lm_eval with `Not all hookpoints could be resolved`.",
    )


TARGET = Target(
    name="lm-eval",
    summary="A .pt file for lm-eval's own `--model steered`.",
    write=write,
    shape="file with record",
    suffix=".pt",
    options=(Option("model", "Hub id or folder of the model.  [default: the kind of model that the booster names]"),),
)
