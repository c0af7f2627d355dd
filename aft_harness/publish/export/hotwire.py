"""The target `hotwire`: a `.pt` for vLLM with the plugin hotwire-vllm, which steers single requests.

Knows that plugin's files: a tensor of (layers, hidden), or a dictionary whose first tensor is one. A request names
the file; its row L is added to the output of decoder layer L, in the dtype of the model.
"""

from __future__ import annotations

import json
import math
import shlex

from aft_harness.boosters.layers import ranges
from aft_harness.errors import ExportError
from aft_harness.publish.export.origin import text
from aft_harness.publish.export.target import Exported, Order, Target

SLOTS = 16
"""How many vectors the plugin holds by default."""


def write(order: Order) -> Exported:
    """Writes the file; see `TARGET`."""
    import torch

    vectors, base = order.vectors, order.booster.provenance.base_model
    layers = max(vectors) + 1 if base is None or not base.layers else base.layers
    if max(vectors) >= layers:
        raise ExportError(f"layer {max(vectors)} is out of range: the base model has {layers} layers")
    matrix = torch.zeros(layers, order.booster.hidden_size)
    for layer, vector in vectors.items():
        matrix[layer] = vector
    torch.save({"vectors": matrix, "aft": text(order)}, order.place)
    model = base.name if base and "/" in base.name else "MODEL"
    return Exported(order.output, _use(order, tuple(vectors), model), _CHECK)


def _use(order: Order, layers: tuple[int, ...], model: str) -> str:
    file, model = shlex.quote(str(order.output)), shlex.quote(model)
    name, slots = order.output.stem, max(SLOTS, 2 ** math.ceil(math.log2(len(layers))))
    entries = f'[{{"id": {json.dumps(name)}, "layer": n}} for n in {_python(layers)}]'
    return (
        "# Every layer takes a slot, at each scale that is asked for; cached prefixes know nothing of steering.\n"
        f"HOTWIRE_VECTORS={file} HOTWIRE_SLOTS={slots} vllm serve {model} --no-enable-prefix-caching\n"
        "# A request names the layers; the strength is in the values.\n"
        f"hotwire = json.dumps({entries})\n"
        'client.chat.completions.create(..., extra_body={"vllm_xargs": {"hotwire": hotwire}})'
    )


def _python(layers: tuple[int, ...]) -> str:
    """The layers as an expression of Python."""
    if len(layers) > 1 and "," not in ranges(layers):
        return f"range({layers[0]}, {layers[-1] + 1})"
    return str(list(layers))


_CHECK = (
    "The same request at temperature 0 is answered otherwise with vllm_xargs than without. The server says `hotwire: "
    "loaded vector`,\nand warns of a request that it does not steer: an unknown name, no slot left."
)

TARGET = Target(
    name="hotwire",
    summary="A .pt file for vLLM with the plugin hotwire-vllm, which steers single requests.",
    write=write,
    shape="file",
    suffix=".pt",
)
