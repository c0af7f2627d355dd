from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from harness_cases import TEXTS, TOYS, booster, requests
from lm_eval import simple_evaluate
from lm_eval.models.hf_steered import SteeredModel
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.probe import Extent
from aft_harness.engine.steering import Steering
from aft_harness.errors import AftError, BoosterError, ModelError, ReferenceSyntaxError
from aft_harness.harness.model import SteeredHFLM

ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon"]


def lm_evals_steered(folder: Path, model: Any, booster: Booster, checkpoint: Path, **kwargs: Any) -> SteeredModel:
    """The same booster under lm-eval's own steering: an implementation that shares nothing with ours."""
    names = {id(module): name for name, module in model.base_model.named_modules()}
    config = {
        names[id(decoder_layers(model)[layer])]: {
            "steering_vector": booster.tensors[f"layers.{layer}.vector"],
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer in booster.layers
    }
    torch.save(config, folder / "steer.pt")
    return SteeredModel(pretrained=str(checkpoint), steer_path=str(folder / "steer.pt"), device="cpu", **kwargs)


def assert_close(left: list[tuple[float, bool]], right: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in left] == [greedy for _, greedy in right]
    assert max(abs(a - b) for (a, _), (b, _) in zip(left, right, strict=True)) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_a_vector_it_is_hf(tiny_checkpoint: Any, architecture: str) -> None:
    folder = str(tiny_checkpoint(architecture))
    hf = HFLM(pretrained=folder, device="cpu", batch_size=3)
    ours = SteeredHFLM(pretrained=folder, device="cpu", batch_size=3)
    assert_close(ours.loglikelihood(requests()), hf.loglikelihood(requests()))
    rolling = [("The child puts on a coat because it is cold. " * 9,), ("Light.",)]
    kind = "loglikelihood_rolling"
    left, right = (lm.loglikelihood_rolling(requests(kind, rolling)) for lm in (ours, hf))
    assert left == pytest.approx(right, abs=1e-3)
    prompts = [(text, {"until": ["."], "max_gen_toks": 12}) for text, _ in TEXTS if text]
    kind = "generate_until"
    assert ours.generate_until(requests(kind, prompts)) == hf.generate_until(requests(kind, prompts))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_booster_does_what_lm_evals_own_steering_does(
    tiny_checkpoint: Any, tmp_path: Path, architecture: str, packing: str
) -> None:
    folder = tiny_checkpoint(architecture)
    ours = SteeredHFLM(pretrained=str(folder), vector=booster(), device="cpu", batch_size=4, packing=packing)
    theirs = lm_evals_steered(tmp_path, ours.model, booster(), folder, batch_size=4)
    found = ours.loglikelihood(requests())
    assert_close(found, theirs.loglikelihood(requests()))
    plain = SteeredHFLM(pretrained=str(folder), device="cpu", batch_size=4).loglikelihood(requests())
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, plain, strict=True)) > 0.1
    prompts = requests("generate_until", [(text, {"until": ["."], "max_gen_toks": 12}) for text, _ in TEXTS[:5]])
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
    rolling = requests("loglikelihood_rolling", [("The child puts on a coat because it is cold.",)])
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=1e-4)


def test_strengths_multiply_and_zero_is_the_baseline(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = str(tiny_checkpoint("llama"))
    booster().save(tmp_path / "a.safetensors")
    ask = {"pretrained": folder, "device": "cpu", "batch_size": 4}
    halved = SteeredHFLM(vector=f"{tmp_path}/a.safetensors:0.25", scale=2, **ask).loglikelihood(requests())
    assert_close(halved, SteeredHFLM(vector=booster().scaled(0.5), **ask).loglikelihood(requests()))
    silent = SteeredHFLM(vector=booster(), scale=0, **ask).loglikelihood(requests())
    assert silent == SteeredHFLM(**ask).loglikelihood(requests())


def test_a_model_object_is_left_as_it_was(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama")
    lm = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, vector=booster(), batch_size=4)
    lm.loglikelihood(requests())
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in decoder_layers(model))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("boom")

    lm.engine.probe.covered = Extent(999, 999, True)
    decoder_layers(model)[3].forward = fail
    with pytest.raises(RuntimeError, match="boom"):
        lm.loglikelihood(requests())
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_another_variant_is_another_object_of_the_same_weights(tiny_checkpoint: Any) -> None:
    def alone(**arguments: Any) -> Any:
        return SteeredHFLM(folder, device="cpu", batch_size=4, **arguments).loglikelihood(requests())

    folder = str(tiny_checkpoint("llama"))
    lm = SteeredHFLM(pretrained=folder, vector=booster(), scale=0.5, device="cpu", batch_size=4)
    before, variant = lm.loglikelihood(requests()), lm.variant
    other, unsteered = lm.with_variant(Variant("b", booster(2), 2.0)), lm.with_variant(BASELINE)
    assert lm.variant is variant and (variant.strength, other.variant.name) == (0.5, "b")
    assert other.model is lm.model and other.engine is lm.engine and other.tokenizer is lm.tokenizer
    steered = other.loglikelihood(requests())
    assert steered == alone(vector=booster(2), scale=2.0) != before
    assert unsteered.loglikelihood(requests()) == alone()
    assert lm.loglikelihood(requests()) == before
    assert len({each.cache_identity(each.variant) for each in (lm, other, unsteered)}) == 3
    records = [each.get_model_info()["aft"]["booster_sha256"] for each in (lm, other, unsteered)]
    assert records == [booster().sha256, booster(2).sha256, None]
    with pytest.raises(BoosterError, match="out of range"):
        lm.with_variant(Variant("c", booster(9)))
    assert lm.variant is variant


def test_variants_are_scored_as_each_alone(tiny_checkpoint: Any) -> None:
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), vector=booster(3), device="cpu", batch_size=4)
    variants = [BASELINE, Variant("a", booster(), 0.5), Variant("b", booster(2))]
    found = lm.score_variants([lm.encode(*text) for text in TEXTS], variants)
    for variant, results in zip(variants, found, strict=True):
        assert_close(results, lm.with_variant(variant).loglikelihood(requests()))


def test_requests_that_no_model_could_score_are_one_line(tiny_checkpoint: Any) -> None:
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), device="cpu")
    for continuation in ("", "x" * 1000):
        with pytest.raises(ModelError, match="cannot be scored by a model with 256 positions"):
            lm.encode("The door", continuation)
    cut = lm.encode("The child opens the door." * 100, " Yes")
    assert len(cut.inputs) == 256 and cut.continuation == lm.encode("The child opens the door.", " Yes").continuation


def test_the_results_file_says_which_booster_ran(tiny_checkpoint: Any) -> None:
    used = booster(method="aft", objective="choice", tasks=[{"task": "toy_choice"}])
    for vector in (used, None):
        results = simple_evaluate(
            model="steered-hf" if vector is None else SteeredHFLM(str(tiny_checkpoint("llama")), vector, 0.5),
            model_args={"pretrained": str(tiny_checkpoint("llama"))},
            tasks=["toy_choice"],
            task_manager=TaskManager(include_path=TOYS),
            bootstrap_iters=0,
        )
        record = json.loads(json.dumps(results["config"]["aft"]))
        assert record["base_model"]["architecture"] == "LlamaForCausalLM" and "/" not in record["base_model"]["name"]
        if vector is None:
            assert record["booster_sha256"] is None
        else:
            assert (record["booster_sha256"], record["layers"], record["strength"]) == (used.sha256, [1], 0.5)
            assert (record["method"], record["trained_on"]) == ("aft", ["toy_choice"])


def test_base_model_identity_holds_no_path(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("gpt2")
    found = SteeredHFLM(pretrained=str(folder), device="cpu").base_model
    assert found.name == folder.name and str(folder.parent) not in found.model_dump_json()
    assert (found.layers, found.hidden_size) == (4, 32)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"scale": "much"}, ReferenceSyntaxError),
        ({"scale": True}, ReferenceSyntaxError),
        ({"vector": "nowhere.safetensors"}, BoosterError),
        ({"vector": 3}, ReferenceSyntaxError),
        ({"vector": Booster.static({1: torch.ones(8)})}, BoosterError),
        ({"vector": Booster.static({9: torch.ones(32)})}, BoosterError),
        ({"packing": "maybe"}, ModelError),
        ({"layers_path": "nowhere"}, ModelError),
        ({"no_such_argument": 3}, ModelError),
    ],
)
def test_bad_arguments_are_typed_errors(tiny_checkpoint: Any, arguments: dict[str, Any], error: type[AftError]) -> None:
    with pytest.raises(error) as caught:
        SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), device="cpu", **arguments)
    assert "\n" not in str(caught.value)


def test_smollm2_on_real_rows_equals_hf(real_data: Path, smollm2: Path) -> None:
    def run(model: str, dtype: str = "float32", **arguments: str) -> tuple[Any, list[float]]:
        results = simple_evaluate(
            model=model,
            model_args={"pretrained": str(smollm2), "dtype": dtype, **arguments},
            tasks=["arc_easy"],
            limit=12,
            bootstrap_iters=0,
            batch_size=8,
            device="cpu",
        )
        samples = results["samples"]["arc_easy"]
        return results["results"]["arc_easy"], [float(score) for row in samples for score, _ in row["filtered_resps"]]

    stock, theirs = run("hf")
    assert run("steered-hf", packing="off") == (stock, theirs)
    packed, ours = run("steered-hf")
    assert packed == stock
    # The rounding of stock float32 alone reaches 1.5e-4 in sums of twenty terms: float64 is the judge.
    _, exact = run("hf", "float64")
    assert ours == pytest.approx(exact, abs=1e-4, rel=0)
    assert ours == pytest.approx(theirs, abs=3e-4, rel=0)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_learned_prompts_of_peft_are_scored_as_hf_scores_them(kind: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), kind(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    arguments: dict[str, Any] = {"pretrained": model, "tokenizer": tiny_tokenizer, "batch_size": 4}
    stock, ours = HFLM(**arguments), SteeredHFLM(**arguments)
    assert_close(ours.loglikelihood(requests()), stock.loglikelihood(requests()))
    assert not ours.engine.packed
    texts = requests("loglikelihood_rolling", [(text,) for _, text in TEXTS])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(stock.loglikelihood_rolling(texts), abs=1e-4)
    asked = requests("generate_until", [("The child walks", {"until": ["."], "max_gen_toks": 6})])
    assert ours.generate_until(asked) == stock.generate_until(asked)
    # With a booster: as stock around the same hook, and several variants as each of them alone.
    with Steering(model, booster()):
        expected = stock.loglikelihood(requests())
    steered = SteeredHFLM(vector=booster(), **arguments)
    assert_close(steered.loglikelihood(requests()), expected)
    encoded = [ours.encode(*request.args) for request in requests()]
    both = ours.score_variants(encoded, [BASELINE, Variant("a", booster())])
    assert_close(both[0], stock.loglikelihood(requests()))
    assert_close(both[1], expected)


def test_a_model_that_is_spread_over_devices_is_loaded_and_steered(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = str(tiny_checkpoint("llama"))
    expected = SteeredHFLM(pretrained=folder, vector=booster(), device="cpu").loglikelihood(requests())
    for arguments in ({"parallelize": True}, {"device_map": "auto"}):
        spread = SteeredHFLM(pretrained=folder, vector=booster(), offload_folder=str(tmp_path), **arguments)
        assert_close(spread.loglikelihood(requests()), expected)
    offloaded = disk_offload(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "disk", torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    on_disk = SteeredHFLM(pretrained=offloaded, tokenizer=tokenizer, vector=booster(), device="cpu")
    assert_close(on_disk.loglikelihood(requests()), expected)
