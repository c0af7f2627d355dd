"""Reads a booster's export as hotwire-vllm does when vLLM starts, in an environment that has that package.

Reads a request of JSON from stdin: `file` (a .pt file), `layers`, `slots` and `output`. Writes an .npz: `vectors`, what
the plugin would add to the output of each layer, in their order; a row of zeros where it has no slot left.

The plugin's operation itself is a kernel for GPUs, and is not run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from hotwire._state import SteerState


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    file = torch.load(request["file"], weights_only=True)
    layers, hidden = next(value for value in file.values() if isinstance(value, torch.Tensor)).shape
    state = SteerState(layers, hidden, 64, torch.device("cpu"), torch.float32, request["slots"])
    state.load_store(request["file"])
    found = []
    for layer in request["layers"]:
        slot = state.slot_for(Path(request["file"]).stem, layer, 1.0)
        found.append(torch.zeros(hidden) if slot is None else state.bank.scales[slot] * state.bank.bank[slot])
    np.savez(request["output"], vectors=torch.stack(found).numpy())


if __name__ == "__main__":
    main()
