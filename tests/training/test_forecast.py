"""What a training will take: compared with the very training, on models small enough to be built whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import examples, plain

from aft_harness.engine.footprint import footprint
from aft_harness.errors import AftError, ModelError, TrainingError
from aft_harness.harness.blueprint import DEEP, SHALLOW, Blueprint, Forecast
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training import forecast as module
from aft_harness.training import train
from aft_harness.training.forecast import _between, distinct_tokens, forecast
from aft_harness.training.groundwork import frozen
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.memory import PASS
from aft_harness.training.recipe import Settings

LAYERS = 6


def draw(lm: SteeredHFLM) -> list[TaskExamples]:
    return [examples(lm, limit=12, dev_docs=4)]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama", num_hidden_layers=LAYERS))


@pytest.fixture(scope="module")
def predicted(model: str) -> Forecast:
    return forecast(Blueprint(model, {"dtype": "float32"}), draw, plain(layers="2-", epochs=2, keep=1.0))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen2", "phi", "gpt2", "gpt_neox", "mamba"])
def test_a_blueprint_is_of_the_model(architecture: str, tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint(architecture, num_hidden_layers=LAYERS)
    whole = SteeredHFLM(str(folder), device="cpu")
    blueprint = Blueprint(str(folder), {"device": "cpu"})
    tensors = [*whole.model.parameters(), *whole.model.buffers()]
    assert blueprint.layers == LAYERS
    assert blueprint.weights == sum(tensor.nbytes for tensor in tensors)
    with blueprint.built(1) as lm:
        assert len(lm.engine.layers) == 1 and lm.model.dtype == torch.float32
        assert [type(part) for part in lm.engine.layers] == [type(whole.engine.layers[0])]
        few = sum(tensor.nbytes for tensor in (*lm.model.parameters(), *lm.model.buffers()))
        assert few == blueprint.weights_of(1) < blueprint.weights


def test_memory_is_what_the_training_keeps(model: str, predicted: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, int] = {}
    append = HiddenStates.append

    def counted(self: HiddenStates, state: torch.Tensor) -> None:
        kept[id(self)] = kept.get(id(self), 0) + state.nbytes
        append(self, state)

    monkeypatch.setattr(HiddenStates, "append", counted)
    lm = SteeredHFLM(model, dtype="float32")
    train.train(lm, draw(lm), plain(layers="2-", epochs=2, keep=1.0))
    # Of the examples, of the texts that are kept, their predictions, and what layers put out.
    states, _, predictions, _ = kept.values()
    assert predicted.memory["hidden states"] == states
    assert predicted.memory["predictions"] == predictions
    assert 0 < predicted.memory["passes"] < PASS
    assert predicted.peak == sum(predicted.memory.values()) and predicted.spilled == 0


def test_passes_take_the_place_of_discarded_weights(model: str, predicted: Forecast) -> None:
    blueprint = Blueprint(model, {"dtype": "float32"})
    found = forecast(blueprint, draw, plain(layers="2-", epochs=2, keep=1.0), disposable=True)
    discarded = blueprint.weights - blueprint.weights_of(LAYERS - 3)
    assert found.memory["passes"] == pytest.approx(max(predicted.memory["passes"] - discarded, 0), abs=1)
    assert found.memory["weights"] == predicted.memory["weights"]


def test_what_a_pass_keeps_is_linear_in_its_layers(model: str) -> None:
    found = []
    blueprint = Blueprint(model, {"dtype": "float32"})
    for layers in (SHALLOW, DEEP):
        with blueprint.built(layers) as lm:
            found.append(module._footprint(lm))
    whole = SteeredHFLM(model, dtype="float32")
    for lowest in (0, 3):
        with frozen(whole.model), whole.engine.differentiated():
            measured = footprint(whole.engine, lowest).of(200, 50, 20)
        assert _between(found[0], found[1], LAYERS - lowest).of(200, 50, 20) == pytest.approx(measured, rel=0.02)


def test_bounds_do_not_count_what_the_trials_have_left_behind(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, left_behind = 10**9, 2**30
    tried = module._tried

    def trial(*arguments: Any) -> module._Trial:
        monkeypatch.setattr(module, "used", lambda device: taken + left_behind)
        return tried(*arguments)

    monkeypatch.setattr(module, "used", lambda device: taken)
    monkeypatch.setattr(module, "_tried", trial)
    found = forecast(Blueprint(model, {"dtype": "float32"}), draw, plain(), memory=taken + 2**28)
    assert found.memory["program"] > left_behind


def test_time_grows_with_layers_tokens_and_epochs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(lm: SteeredHFLM, tasks: Any, settings: Settings, documents: int, texts: Any) -> module._Trial:
        layers = len(lm.engine.layers)
        few = [tasks[0].__class__(**{**vars(tasks[0]), "train": tasks[0].train[:documents], "development": ()})]
        work = module._Work.of(few, plain(epochs=1))
        seconds = {
            "caching": 5 + 2 * layers + 0.5 * work.cached,
            "training": work.learned * (3 + 7 * (layers - 1)),
            "scoring": work.scored * (1 + 2 * (layers - 1)),
        }
        return module._Trial(work, seconds)

    monkeypatch.setattr(module, "_tried", tried)
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "MORE", 9)
    found = forecast(Blueprint(model, {"dtype": "float32"}), draw, plain(layers="2-", epochs=4))
    lm = SteeredHFLM(model, dtype="float32")
    (task,) = draw(lm)
    learned, watched = distinct_tokens(task.train), distinct_tokens(task.development)
    assert found.seconds["caching"] == pytest.approx(5 + 2 * LAYERS + 0.5 * (learned + watched) * 3)
    assert found.seconds["training"] == pytest.approx(4 * learned * (3 + 7 * 3))
    assert found.seconds["scoring"] == pytest.approx(5 * watched * (1 + 2 * 3))
    assert found.repeated(6).duration == pytest.approx(6 * found.duration)


def test_real_trials_have_times(predicted: Forecast) -> None:
    assert list(predicted.seconds) == ["caching", "training", "scoring"]
    assert all(seconds > 0 for seconds in predicted.seconds.values())


def test_what_cannot_be_estimated_is_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="objective reward takes cannot be estimated"):
        forecast(Blueprint(model, {}), draw, Settings(objective="reward"))
    with pytest.raises(TrainingError, match="the model alone takes"):
        forecast(Blueprint(model, {"dtype": "float32"}), draw, plain(), memory=2**20)
    with pytest.raises(ModelError, match="loaded with peft= takes cannot be estimated"):
        Blueprint(model, {"peft": "adapter"})
    with pytest.raises(AftError, match="dtype float99"):
        Blueprint(model, {"dtype": "float99"})
    with pytest.raises(ModelError, match="no model in this folder"):
        Blueprint(str(tmp_path), {})
    config = json.loads((Path(model) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no tokenizer that can be read"):
        Blueprint(str(tmp_path), {})
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="a quantised checkpoint"):
        Blueprint(str(tmp_path), {})
