"""What passes keep: the prediction from short rows against what autograd is seen to keep on long ones."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from engine_cases import ARCHITECTURES, engine
from torch.utils._python_dispatch import TorchDispatchMode

from aft_harness.boosters.injections import StaticInjection
from aft_harness.engine.footprint import Footprint, footprint
from aft_harness.engine.rows import batches
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import training_injections
from aft_harness.engine.trie import pack


def seen(model: Any, lowest: int, count: int, width: int, predictions: int) -> int:
    """Bytes of the tensors that live between the forward and the backward pass, the oracle: found by the collector."""
    runner = engine(model)
    requests = [Request((5,) * (width + 1 - predictions), (5,) * predictions)] * count
    rows = [row for request in requests for row in pack([request.inputs], [predictions], width)]
    (batch,) = batches(rows, count * width)
    vector = torch.zeros(model.config.hidden_size, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with training_injections(runner.layers, {lowest: StaticInjection(vector)}):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = runner.score(batch, requests, torch.float32)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found = sum(size for address, size in kept.items() if address not in weights)
        del scores
    gc.collect()
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lowest", [0, 2])
def test_long_rows_keep_what_short_ones_predict(tiny_model: Any, lowest: int, attention: str) -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.set_attn_implementation(attention)
    found = footprint(engine(model), lowest)
    for count, width, predictions in ((1, 128, 1), (4, 100, 20), (2, 190, 1)):
        actual = seen(model, lowest, count, width, predictions)
        # The gradient of the logits is foretold, too, and is not there yet.
        predicted = found.of(count * width, width, 0) + count * predictions * found.prediction / 2
        assert predicted == pytest.approx(actual, rel=0.1)


def test_only_layers_above_the_lowest_are_kept(tiny_model: Any) -> None:
    model = tiny_model("llama").requires_grad_(False)
    low, high = footprint(engine(model), 0), footprint(engine(model), 2)
    assert high.column == pytest.approx(low.column / 3, rel=0.35)
    assert high.prediction == pytest.approx(low.prediction)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3_text"])
def test_every_model_is_measured_and_left_as_it_was(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture).requires_grad_(False)
    found = footprint(engine(model, packed=architecture not in ("bloom", "mamba")), 1)
    assert found.column > 0 and found.pair >= 0 and found.prediction > 0
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_footprint_is_a_polynomial() -> None:
    assert Footprint(10.0, 2.0, 100.0).of(30, 5, 7) == 30 * (10 + 2 * 5) + 700


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, and the most bytes of them that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in self.alive:
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


@pytest.mark.parametrize("architecture", ["llama", "phi", "gpt2", "gemma2"])
def test_a_pass_without_gradients_stays_within_its_limit(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture, num_hidden_layers=6).requires_grad_(False)
    model.set_attn_implementation("eager")
    runner = engine(model)
    found = footprint(runner, 0)
    assert found.layers == 5
    for count, width in ((1, 128), (8, 32), (3, 100)):
        request = Request((5,) * width, (5,))
        rows = [row for _ in range(count) for row in pack([request.inputs], [1], width)]
        (batch,) = batches(rows, count * width)
        with torch.no_grad(), LiveBytes() as live:
            runner.hidden(batch, 5)
        limit = 10**6
        columns = found.columns_without_gradient(width, limit)
        assert 0.4 * limit < live.peak / (count * width) * columns < 1.1 * limit


def test_no_graph_outlives_a_measurement(tiny_model: Any) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(isinstance(each, torch.Tensor) and each.grad_fn is not None for each in gc.get_objects())

    model = tiny_model("llama").requires_grad_(False)
    before = graphs()
    footprint(engine(model), 0)
    assert graphs() == before
