"""The target `hotwire`: a `.pt` for vLLM with the plugin hotwire-vllm, which steers single requests.

Knows that plugin's files: a tensor of (layers, hidden), or a dictionary whose first tensor is one. A request names
the file; its row L is added to the output of decoder layer L, in the dtype of the model.
"""

from __future__ import annotations

import io
import json
import math
import shlex
from typing import TYPE_CHECKING

from aft_harness.boosters.layers import ranges
from aft_harness.errors import ExportError
from aft_harness.files import write_atomically
from aft_harness.publish.export.target import Exported, Job, Target, origin, static_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SLOTS = 16
"""How many vectors the plugin holds, unless told otherwise."""


def run(job: Job) -> Exported:
    """See `Target`."""
    vectors = static_vectors(job.variant, "hotwire")
    base = job.variant.booster.provenance.base_model if job.variant.booster else None
    layers = max(vectors) + 1 if base is None or not base.layers else base.layers
    if max(vectors) >= layers:
        raise ExportError(f"layer {max(vectors)} is out of range: the base model has {layers} layers")
    write_atomically(job.output, matrix_file(vectors, layers, json.dumps(origin(job.variant), sort_keys=True)))
    return Exported(job.output, _use(job, tuple(vectors), base.name if base and "/" in base.name else "MODEL"), _CHECK)


def matrix_file(vectors: Mapping[int, Tensor], layers: int, made_from: str) -> bytes:
    """The bytes of the file: the matrix, and beside it the JSON text of what it was made from."""
    import torch

    matrix = torch.zeros(layers, len(next(iter(vectors.values()))))
    for layer, vector in vectors.items():
        matrix[layer] = vector
    buffer = io.BytesIO()
    torch.save({"vectors": matrix, "aft": made_from}, buffer)
    return buffer.getvalue()


def _use(job: Job, layers: tuple[int, ...], model: str) -> str:
    file, model = shlex.quote(str(job.output)), shlex.quote(model)
    name, slots = job.output.stem, max(SLOTS, 2 ** math.ceil(math.log2(len(layers))))
    entries = f'[{{"id": {json.dumps(name)}, "layer": n}} for n in {_python(layers)}]'
    return (
        "# Every layer takes a slot, at each scale that is asked for; cached prefixes know nothing of steering.\n"
        f"HOTWIRE_VECTORS={file} HOTWIRE_SLOTS={slots} vllm serve {model} --no-enable-prefix-caching\n"
        "# A request names the layers; the strength is in the values.\n"
        f"hotwire = json.dumps({entries})\n"
        'client.chat.completions.create(..., extra_body={"vllm_xargs": {"hotwire": hotwire}})'
    )


def _python(layers: tuple[int, ...]) -> str:
    """The layers as Python says them."""
    if len(layers) > 1 and "," not in ranges(layers):
        return f"range({layers[0]}, {layers[-1] + 1})"
    return str(list(layers))


_CHECK = (
    "the same request at temperature 0 with and without vllm_xargs; the server says `hotwire: loaded vector`, and "
    "warns of a request that it does not steer (an unknown name, no slot left)"
)

TARGET = Target(
    name="hotwire",
    summary="A .pt for vLLM with the plugin hotwire-vllm, which steers single requests.",
    run=run,
    suffix=".pt",
)
