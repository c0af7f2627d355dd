from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.hf_steered import SteeredModel
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from aft_harness.boosters.booster import Booster
from aft_harness.engine.scoring import _Extent
from aft_harness.engine.steering import decoder_layers
from aft_harness.errors import AftError, BoosterError, CacheError, ModelError, ReferenceSyntaxError
from aft_harness.harness.model import SteeredHFLM

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon"]
TEXTS = [
    ("The child opens the door", " and sits down"),
    ("The child opens the door", " and walks to school"),
    ("The child opens the door", " and walks"),
    ("She looks around the room.", " light"),
    ("She looks around the room.", " water"),
    ("", "Plants need water"),
    ("The child opens the door", " and sits down"),
    ("Question: what is it? Answer: ", "an apple"),
]


def requests(kind: str = "loglikelihood", texts: Any = TEXTS) -> list[Instance]:
    return [Instance(kind, {}, tuple(args), index) for index, args in enumerate(texts)]


def booster(layer: int = 1, scale: float = 1.0, **provenance: Any) -> Booster:
    generator = torch.Generator().manual_seed(7)
    return Booster.static({layer: scale * torch.randn(32, generator=generator)}, provenance)


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
    assert_close(halved, SteeredHFLM(vector=booster(scale=0.5), **ask).loglikelihood(requests()))
    silent = SteeredHFLM(vector=booster(), scale=0, **ask).loglikelihood(requests())
    assert silent == SteeredHFLM(**ask).loglikelihood(requests())


def test_a_model_object_is_left_as_it_was(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama")
    lm = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, vector=booster(), batch_size=4)
    lm.loglikelihood(requests())
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in decoder_layers(model))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("boom")

    lm.engine._covered = _Extent(999, 999, True)
    decoder_layers(model)[3].forward = fail
    with pytest.raises(RuntimeError, match="boom"):
        lm.loglikelihood(requests())
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


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
        said = json.loads(json.dumps(results["config"]["aft"]))
        assert said["base_model"]["architecture"] == "LlamaForCausalLM" and "/" not in said["base_model"]["name"]
        if vector is None:
            assert said["booster_sha256"] is None
        else:
            assert (said["booster_sha256"], said["layers"], said["strength"]) == (used.sha256, [1], 0.5)
            assert (said["method"], said["trained_on"]) == ("aft", ["toy_choice"])


def test_a_response_cache_of_another_run_is_refused(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = str(tiny_checkpoint("llama"))

    def cached(lm: HFLM, name: str) -> list[tuple[float, bool]]:
        return CachingLM(lm, str(tmp_path / name)).loglikelihood(requests())

    def ours(**kwargs: Any) -> SteeredHFLM:
        return SteeredHFLM(pretrained=folder, device="cpu", batch_size=4, **kwargs)

    first = cached(ours(), "base.db")
    assert cached(ours(), "base.db") == first
    with pytest.raises(CacheError, match=r"base\.db: was written by .* with no booster"):
        cached(ours(vector=booster()), "base.db")
    steered = cached(ours(vector=booster()), "steered.db")
    assert cached(ours(vector=booster()), "steered.db") == steered != first
    for other in (ours(vector=booster(), scale=0.5), ours(vector=booster(2)), ours(), ours(dtype="bfloat16")):
        with pytest.raises(CacheError, match="give a new path"):
            cached(other, "steered.db")
    cached(HFLM(pretrained=folder, device="cpu"), "hf.db")
    with pytest.raises(CacheError, match=r"hf\.db: was not written by steered-hf"):
        cached(ours(), "hf.db")


def test_it_warns_of_training_documents(tiny_checkpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    from aft_harness.boosters.documents import text_hash

    documents = [{"question": f"What is {n}?"} for n in range(6)]
    asked = [
        Instance("loglikelihood", doc, ("Question: " + doc["question"], f" {n}"), n, metadata=("toy", i, 1))
        for i, doc in enumerate(documents)
        for n in range(2)
    ]
    trained = booster(documents={"hashes": [text_hash("what is 1"), text_hash("WHAT IS 4?"), "0" * 16]})
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), vector=trained, device="cpu")
    with caplog.at_level(logging.WARNING, "aft_harness"):
        lm.loglikelihood(asked)
    assert "2 of 6 documents of toy are among the booster's training documents" in caplog.text


def test_it_warns_of_another_base_model(tiny_checkpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(tiny_checkpoint("llama"))
    base = SteeredHFLM(pretrained=folder, device="cpu").base_model.to_json()
    with caplog.at_level(logging.WARNING, "aft_harness"):
        SteeredHFLM(pretrained=folder, device="cpu", dtype="bfloat16", vector=booster(base_model=base))
        assert "expect no gain" not in caplog.text
        SteeredHFLM(pretrained=str(tiny_checkpoint("llama", seed=5)), vector=booster(base_model=base))
    assert "the booster was made for" in caplog.text
    caplog.clear()
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama", seed=5)), device="cpu")
    with caplog.at_level(logging.WARNING, "aft_harness"):
        for strength in (1.0, 2.0):  # as an evaluation of several variants does
            lm.steering_for(booster(base_model=base), strength)
    assert caplog.text.count("expect no gain") == 1


def test_base_model_identity_holds_no_path(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("gpt2")
    found = SteeredHFLM(pretrained=str(folder), device="cpu").base_model
    assert found.name == folder.name and str(folder.parent) not in json.dumps(found.to_json())
    assert (found.layers, found.hidden_size) == (4, 32)


def saved(model: Any, folder: Path, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_models_that_cannot_be_steered_are_one_clear_line(tmp_path: Path, tiny_tokenizer: Any) -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertForMaskedLM(BertConfig(**sizes, intermediate_size=64, initializer_range=0.5))
    sizes = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(**sizes, **{"decoder_start_token_id": 0}))
    (tmp_path / "empty").mkdir()
    cases = {
        saved(bert, tmp_path / "bert", tiny_tokenizer): "not a causal language model",
        saved(t5, tmp_path / "t5", tiny_tokenizer): "is not a causal language model but seq2seq",
        str(tmp_path / "empty"): "cannot be loaded",
        "no-such-owner/no-such-model": "no-such-owner/no-such-model cannot be loaded",
        str(tmp_path / "nowhere"): "nowhere cannot be loaded",
    }
    for pretrained, reason in cases.items():
        with pytest.raises(ModelError, match=reason) as caught:
            SteeredHFLM(pretrained=pretrained, device="cpu")
        assert "\n" not in str(caught.value)


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
