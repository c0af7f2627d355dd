from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import WIDTH, booster, checkpoint
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.errors import BoosterError, ExportError, ParseError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.publish.export.registry import export

TEXTS = [("The child walks", " to school."), ("Which of these", " is a source of light"), ("3 boxes", ": 12 apples")]


def scores(lm: Any) -> list[float]:
    requests = [Instance("loglikelihood", {}, text, index) for index, text in enumerate(TEXTS)]
    return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "falcon"])
def test_lm_evals_own_steered_model_does_the_same(architecture: str, tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", architecture))
    export("lm-eval", booster(), tmp_path / "a.pt", model=base, scale=0.5)
    theirs = scores(SteeredModel(pretrained=base, steer_path=str(tmp_path / "a.pt"), device="cpu"))
    ours = scores(SteeredHFLM(pretrained=base, vector=booster(), scale=0.5, device="cpu"))
    plain = scores(SteeredHFLM(pretrained=base, device="cpu"))
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(theirs, plain, strict=True)) > 0.1


def test_the_file_is_read_without_trust_and_has_its_record_beside_it(tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", "llama"))
    export("lm-eval", booster(), tmp_path / "a.pt", model=base, scale=2.0)
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert sorted(found) == ["layers.0", "layers.1", "layers.3"]
    assert torch.equal(found["layers.1"]["steering_vector"], 2 * booster().tensors["layers.1.vector"])
    record = json.loads((tmp_path / "a.pt.json").read_text())
    assert record["booster_sha256"] == booster().sha256 and record["strength"] == 2.0


def test_without_a_model_the_booster_says_of_which_kind_it_is(tmp_path: Path) -> None:
    recorded = {"name": "b", "architecture": "GPT2LMHeadModel", "layers": 4, "hidden_size": WIDTH}
    vectors = {layer: torch.ones(WIDTH) for layer in (1, 3)}
    export("lm-eval", Booster.static(vectors, {"base_model": recorded}), tmp_path / "a.pt")
    assert sorted(torch.load(tmp_path / "a.pt", weights_only=True)) == ["h.1", "h.3"]
    for name in ("os", "Trainer", "", "nothing"):
        unknown = Booster.static(vectors, {"base_model": {**recorded, "architecture": name}})
        with pytest.raises(ExportError, match="does not say which kind of model it is for; name the model"):
            export("lm-eval", unknown, tmp_path / "b.pt")


def test_what_it_cannot_say_is_refused(tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", "llama"))
    with pytest.raises(ExportError, match="contextual"):
        export("lm-eval", Booster.of({1: ContextualInjection.fresh(WIDTH, 2, 0)}), tmp_path / "a.pt", model=base)
    with pytest.raises(BoosterError, match="layer 9 is out of range"):
        export("lm-eval", booster(layers=(9,)), tmp_path / "a.pt", model=base)
    with pytest.raises(ParseError, match=r"ends in \.pt"):
        export("lm-eval", booster(), tmp_path / "a.bin", model=base)


def test_an_interrupted_export_is_run_again(tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", "llama"))
    path, record = tmp_path / "a.pt", tmp_path / "a.pt.json"
    export("lm-eval", booster(), path, model=base, scale=2.0)
    path.unlink()  # the record is written first
    export("lm-eval", booster(), path, model=base)
    assert path.is_file() and json.loads(record.read_text())["strength"] == 1.0
    path.unlink()
    record.write_text("{}")  # somebody else's
    with pytest.raises(ExportError, match=r"a\.pt\.json exists"):
        export("lm-eval", booster(), path, model=base)
    assert record.read_text() == "{}"
