"""A GGUF file against transformers with the same weights: what one engine computes, the other must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_cases import write_gguf
from harness_cases import TEXTS, TOYS, booster, requests
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from aft_harness.api import evaluation as api
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import AftError, BoosterError, CacheError, ModelError
from aft_harness.harness.model import SteeredHFLM

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra gguf)")

from aft_harness.harness.gguf import SteeredGgufLM

CPU = {"n_threads": 1, "device": "cpu"}
LONG = [("She opens the door and walks to school because it is cold outside. " * 12,), ("x",)]


@pytest.fixture(scope="module")
def file(tiny_model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model("llama"), tiny_tokenizer)


@pytest.fixture(scope="module")
def hf(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    return SteeredHFLM(tiny_model("llama"), tokenizer=tiny_tokenizer, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def lm(file: Path) -> SteeredGgufLM:
    return SteeredGgufLM(file, **CPU)


VARIANTS = [BASELINE, Variant("one", booster(1)), Variant("half", booster(3), 0.5)]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("packing", ["on", "off"])
def test_every_request_is_answered_as_by_steered_hf(
    file: Path, hf: SteeredHFLM, variant: Variant, packing: str
) -> None:
    ours = SteeredGgufLM(file, packing=packing, **CPU).with_variant(variant)
    theirs = hf.with_variant(variant)
    found, expected = (each.loglikelihood(requests(), disable_tqdm=True) for each in (ours, theirs))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    kind = "loglikelihood_rolling"
    totals = [each.loglikelihood_rolling(requests(kind, LONG)) for each in (ours, theirs)]
    assert totals[0] == pytest.approx(totals[1], abs=5e-3)
    prompts = [(text, {"until": ["e", "."], "max_gen_toks": 12}) for text, _ in TEXTS if text]
    prompts += [("She looks", {"until": "zz", "max_gen_toks": 20}), ("She", {"until": [], "max_gen_toks": 5})]
    texts = [each.generate_until(requests("generate_until", prompts)) for each in (ours, theirs)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 3
    assert ours.sequences.sharing == (packing == "on")


def test_variants_are_switched_without_loading_the_file_again(lm: SteeredGgufLM, hf: SteeredHFLM) -> None:
    asked = [lm.encode(*text) for text in TEXTS]
    assert asked == [hf.encode(*text) for text in TEXTS]
    found = lm.score_variants(asked, [*VARIANTS, BASELINE])
    for results, expected in zip(found, hf.score_variants(asked, [*VARIANTS, BASELINE]), strict=True):
        assert [score for score, _ in results] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert found[0] == found[-1] != found[1]
    assert found[0] == lm.score_variants(asked, [Variant("zero", booster(1), 0.0)])[0]


def test_several_boosters_mix_and_scale(file: Path, hf: SteeredHFLM, tmp_path: Path) -> None:
    for name, layer in (("a", 1), ("b", 2)):
        booster(layer, seed=layer).save(tmp_path / f"{name}.safetensors")
    spec = f"{tmp_path}/a.safetensors:0.5+{tmp_path}/b.safetensors:2"
    ours = SteeredGgufLM(file, vector=spec, scale=0.5, **CPU)
    theirs = SteeredHFLM(hf.model, tokenizer=hf.tokenizer, vector=spec, scale=0.5, device="cpu")
    found, expected = (each.loglikelihood(requests(), disable_tqdm=True) for each in (ours, theirs))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)


def test_the_tokenizer_is_that_of_the_file(
    lm: SteeredGgufLM, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "same")
    lm.tokenizer.check_equal(str(tmp_path / "same"))
    with_bos = SteeredGgufLM(
        write_gguf(tmp_path / "bos.gguf", tiny_model("llama"), tiny_tokenizer, add_bos=True), **CPU
    )
    assert with_bos.tok_encode("A") == [1, *lm.tok_encode("A")] == with_bos.tok_encode("<bos>A")
    assert lm.tok_encode("A", add_special_tokens=True) == with_bos.tok_encode("A")
    with pytest.raises(ModelError, match=r"begins a text with no special token, bos.gguf with .1."):
        with_bos.tokenizer.check_equal(str(tmp_path / "same"))
    other = SteeredGgufLM(tmp_path / "bos.gguf", tokenizer=str(tmp_path / "same"), add_bos_token=False, **CPU)
    assert other.tok_encode("A") == lm.tok_encode("A")
    with pytest.raises(ModelError, match=r"tokenizer=.*nowhere: cannot be loaded"):
        SteeredGgufLM(tmp_path / "bos.gguf", tokenizer=str(tmp_path / "nowhere"), **CPU)
    for text in ("naïve <eos> café", " a  b\n"):
        assert lm.tok_encode(text) == tiny_tokenizer.encode(text)
        assert lm.tok_decode(lm.tok_encode(text)) == tiny_tokenizer.decode(
            lm.tok_encode(text), skip_special_tokens=True
        )


def test_the_chat_template_is_that_of_the_file(lm: SteeredGgufLM) -> None:
    said = [{"role": "user", "content": "Hello"}]
    assert lm.apply_chat_template(said) == "<bos>Hello<eos>Answer:"
    assert lm.apply_chat_template([{"role": "system", "content": "S"}, *said]) == "<bos>Hello<eos>Answer:"
    assert lm.apply_chat_template([*said, {"role": "assistant", "content": "It"}], False).endswith("<bos>It")
    assert "raise_exception" in str(lm.chat_template(True))


def test_what_does_not_fit_is_refused(file: Path, lm: SteeredGgufLM, tmp_path: Path) -> None:
    for bad, message in [
        (Booster.static({1: torch.ones(33)}), "hidden size of 33; tiny has 32"),
        (Booster.static({4: torch.ones(32)}), "layer 4 is out of range"),
        (Booster.static({0: torch.ones(32)}), "cannot steer layer 0"),
    ]:
        with pytest.raises(BoosterError, match=message):
            lm.with_variant(Variant("v", bad))
    with pytest.raises(ModelError, match=r"continuation of 9 tokens .* 8 positions"):
        SteeredGgufLM(file, n_ctx=8, **CPU)._loglikelihood_tokens([(None, [1], [3] * 9)])
    with pytest.raises(ModelError, match="leave no room for a prompt in a context of 16; use a larger n_ctx"):
        SteeredGgufLM(file, n_ctx=16, **CPU).generate_until(requests("generate_until", [("A", {"max_gen_toks": 16})]))
    with pytest.raises(ModelError, match="n_gpu_layers=2: this build"):
        SteeredGgufLM(file, n_threads=1, n_gpu_layers=2)
    damaged = tmp_path / "strange.gguf"
    damaged.write_bytes(file.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(ModelError, match="does not load it: unknown model architecture: 'lamma'"):
        SteeredGgufLM(damaged, **CPU)
    (tmp_path / "short.gguf").write_bytes(file.read_bytes()[:-9000])
    with pytest.raises(ModelError, match=r"short.gguf: llama-cpp-python .* does not load it: .*file bounds"):
        SteeredGgufLM(tmp_path / "short.gguf", **CPU)


def test_a_quantised_cache_is_measured(
    file: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match="type_k=q8_0: this model's heads have a width of 8"):
        SteeredGgufLM(file, type_k="q8_0", **CPU)
    wide = tiny_model("llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    path = write_gguf(tmp_path / "wide.gguf", wide, tiny_tokenizer)
    with caplog.at_level("INFO"):
        lm = SteeredGgufLM(path, type_k="q8_0", type_v="f16", **CPU)
    assert lm.settings["type_k"] == "q8_0"
    assert "type_k=q8_0, type_v=f16:" in caplog.text and "nats a token from f16" in caplog.text


def test_another_depth_is_warned_of_once(lm: SteeredGgufLM, caplog: pytest.LogCaptureFixture) -> None:
    for layers, warned in ((4, 0), (30, 1)):
        made = booster(1, seed=layers, base_model={"name": "m/n", "layers": layers, "fingerprint": "ab" * 32})
        for _ in range(2):
            lm.with_variant(Variant("v", made))
        assert caplog.text.count("expect no gain") == warned


def test_lm_eval_runs_it_and_records_what_ran(file: Path, tmp_path: Path) -> None:
    booster(1).save(tmp_path / "v.safetensors")
    arguments = {"pretrained": str(file), "vector": f"{tmp_path}/v.safetensors:0.5", **CPU}
    asked: dict[str, Any] = {"tasks": ["toy_choice"], "task_manager": TaskManager(include_path=TOYS), "limit": 4}
    cache = {"use_cache": str(tmp_path / "answers")}
    results = simple_evaluate(SteeredGgufLM(**arguments), bootstrap_iters=0, **asked, **cache)
    assert results is not None
    config = results["config"]
    assert (config["aft"]["strength"], config["aft"]["base_model"]["name"]) == (0.5, "tiny")
    assert (config["model_dtype"], config["model_num_parameters"]) == ("F32", 57632)
    again = simple_evaluate(SteeredGgufLM(**arguments), bootstrap_iters=0, **asked, **cache)
    assert again is not None and again["results"] == results["results"]
    with pytest.raises(CacheError, match="booster"):
        simple_evaluate(SteeredGgufLM(**{**arguments, "vector": None}), bootstrap_iters=0, **asked, **cache)


def test_aft_evaluate_takes_a_file(file: Path, tiny_checkpoint: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"tasks": "toy_choice", "include_path": [TOYS], "boosters": {"v": booster(1)}}
    cache = {"use_cache": tmp_path / "answers"}
    found = api.evaluate(str(file), model_args={**CPU, "batch_size": 4, "revision": "main"}, **asked, **cache)
    expected = api.evaluate(tiny_checkpoint("llama"), model_args={"device": "cpu", "dtype": "float32"}, **asked)
    (ours,), (theirs,) = (each.table[each.table["metric"] == "acc"].to_dict("records") for each in (found, expected))
    for column in ("n", "baseline", "steered", "gained", "lost", "p_value"):
        assert ours[column] == theirs[column]
    assert (ours["model"], ours["dtype"]) == ("tiny", "F32")
    with pytest.raises(AftError, match="dtype"):
        api.evaluate(str(file), model_args={"dtype": "bfloat16"}, **asked)
