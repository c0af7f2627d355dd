"""What answers depend on: every argument of lm-eval's model type is known, and a cache of other answers is refused."""

from __future__ import annotations

import copy
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from harness_cases import booster, requests
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from tokenizers import pre_tokenizers

from aft_harness.boosters.variant import BASELINE
from aft_harness.errors import CacheError
from aft_harness.harness.identity import answer_settings, differences, tokenizer_identity
from aft_harness.harness.model import SteeredHFLM

BY_THE_FINGERPRINT = {"pretrained", "subfolder", "delta", "kwargs", "gguf_file"}
BY_NAME = {"peft", "truncation", "max_length", "softmax_dtype", "mixed_precision_dtype", "add_bos_token"}
BY_NAME |= {"prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args"}
BY_ANOTHER_NAME = {
    "autogptq": "quantization",
    "gptqmodel": "quantization",
    "tokenizer": "tokenizer",
    "use_fast_tokenizer": "tokenizer",
}
OF_THE_IDENTITY = {"revision", "dtype"}
NO_INFLUENCE = {
    "backend": "steered-hf takes causal models only",
    "logits_cache": "another order of the same work",
    "device": "rounding only",
    "batch_size": "rounding only",
    "max_batch_size": "rounding only",
    "trust_remote_code": "what the code computes shows in the model's class and weights",
    "parallelize": "where the weights lie",
    "max_memory_per_gpu": "where the weights lie",
    "max_cpu_memory": "where the weights lie",
    "offload_folder": "where the weights lie",
    "tp_plan": "where the weights lie",
}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def ours(folder: str, **arguments: Any) -> SteeredHFLM:
    return SteeredHFLM(pretrained=folder, device="cpu", batch_size=4, **arguments)


def test_every_argument_of_the_stock_model_type_is_accounted_for(folder: str) -> None:
    known = BY_THE_FINGERPRINT | BY_NAME | set(BY_ANOTHER_NAME) | OF_THE_IDENTITY | set(NO_INFLUENCE)
    assert set(inspect.signature(HFLM.__init__).parameters) - {"self"} == known
    lm = ours(folder)
    settings = answer_settings(lm)
    assert (BY_NAME | set(BY_ANOTHER_NAME.values())) <= settings.keys()
    assert json.loads(lm.cache_identity(BASELINE)).keys() >= OF_THE_IDENTITY


def test_a_cache_of_another_tokenizer_is_refused_by_its_name(folder: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    first, second = ours(folder), ours(folder, tokenizer=other)
    path = str(tmp_path / "c.db")
    answers = CachingLM(first, path).loglikelihood(requests())
    assert second.loglikelihood(requests()) != answers, "the tokenizer matters"
    with pytest.raises(
        CacheError, match=r"written with tokenizer \w+ \w{12}, not \w+ \w{12}; use a new path"
    ) as caught:
        CachingLM(second, path).loglikelihood(requests())
    assert caught.value.args[0].count(", not ") == 1, "only what differs is named"
    assert CachingLM(ours(folder), path).loglikelihood(requests()) == answers


def test_each_setting_that_differs_is_named(folder: str) -> None:
    lm = ours(folder)
    identity = lm.cache_identity(BASELINE)
    changes: dict[str, Any] = {
        "attention": lambda: setattr(lm.model.config, "_attn_implementation", "eager"),
        "generation defaults": lambda: setattr(lm.model.generation_config, "repetition_penalty", 1.5),
        "chat template": lambda: setattr(lm.tokenizer, "chat_template", "{{ messages }}"),
        "max length": lambda: setattr(lm, "_max_length", 64),
        "add bos token": lambda: setattr(lm, "add_bos_token", True),
    }
    seen: list[str] = []
    for name, change in changes.items():
        change()
        lm.settings = answer_settings(lm)
        seen.append(name)
        found = differences(identity, lm.cache_identity(BASELINE))
        assert sorted(line.split(", not ")[0].rpartition(" ")[0] for line in found) == sorted(seen)
    for written in ("", "{}", "[]", "nothing", None, '{"model": "old", "settings": {}}'):
        assert differences(written, identity) == []


def test_caches_of_other_models_and_boosters_are_told_apart(folder: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "c.db")
    CachingLM(ours(folder, vector=booster()), path).loglikelihood(requests())
    sha256 = re.escape(booster().sha256[:12])
    for other, words in (
        (ours(folder), rf"booster {sha256}, not none; strength 1.0, not none"),
        (ours(folder, vector=booster(), scale=0.5), "strength 1.0, not 0.5"),
        (ours(folder, vector=booster(), packing="off"), "packing True, not False"),
        (ours(str(tiny_checkpoint("llama", seed=9)), vector=booster()), r"model llama\d+ \(\w{12}\), not llama\d+"),
        (ours(folder, vector=booster(), dtype="bfloat16"), "dtype torch.float32, not torch.bfloat16"),
    ):
        with pytest.raises(CacheError, match=f"c.db: this response cache was written with .*{words}"):
            CachingLM(other, path).loglikelihood(requests())


def test_a_cache_of_an_earlier_version_is_refused(folder: str, tmp_path: Path) -> None:
    lm = ours(folder)
    caching = CachingLM(lm, str(tmp_path / "c.db"))
    earlier = json.dumps({"model": lm.base_model.fingerprint, "name": "x", "booster": None, "settings": {}})
    caching.dbdict["aft_harness:written_by"] = earlier
    with pytest.raises(CacheError, match="written by another version of steered-hf; use a new path"):
        lm.set_cache_hook(caching.get_cache_hook())


def test_a_model_that_cannot_be_told_is_not_another_one_in_another_process(folder: str) -> None:
    lm = ours(folder)
    known = lm.cache_identity(BASELINE)
    lm.base_model = lm.base_model.model_copy(update={"fingerprint": None})
    unknown = json.loads(lm.cache_identity(BASELINE))["model"]
    assert lm.cache_identity(BASELINE) != known and unknown == json.loads(lm.cache_identity(BASELINE))["model"]
    assert re.fullmatch(r"unknown [0-9a-f]{32}", unknown)


def test_a_tokenizer_is_the_same_after_it_was_used_saved_and_loaded(
    tiny_tokenizer: Any, folder: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    before = tokenizer_identity(tiny_tokenizer)
    tiny_tokenizer(["a", "the child"], padding="max_length", truncation=True, max_length=9)
    assert tokenizer_identity(tiny_tokenizer) == before
    loaded = tokenizer_identity(AutoTokenizer.from_pretrained(folder))
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert tokenizer_identity(AutoTokenizer.from_pretrained(tmp_path)) == loaded
