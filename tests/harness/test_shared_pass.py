from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.shared_pass import SharedPass, VariantLM
from aft_harness.progress import ignore

PROMPTS = ["the child walks home", "a door", "water plants"]


def asked(**settings: Any) -> list[Instance]:
    texts = [
        Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 8, **settings}), place)
        for place, prompt in enumerate(PROMPTS)
    ]
    return [text for text in texts for _ in range(4)]  # as lm-eval asks a task with `repeats: 4`


def test_samples_are_drawn_each_time_and_greedy_texts_are_kept(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    lm = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=6)
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=6)
    sampling = {"do_sample": True, "temperature": 1.0}
    both = [*asked(), *asked(**sampling)]
    torch.manual_seed(0)
    expected = stock.generate_until(both)
    variants = [BASELINE, Variant("a", Booster.static({1: torch.ones(32)}))]
    for _ in range(2):  # the second time with a store that holds what the first left there
        with ScoreStore(tmp_path / "s.sqlite") as store:
            shared = SharedPass(lm, variants, store, ignore)
            torch.manual_seed(0)
            found = VariantLM(shared, 0).generate_until(both)
            assert found == expected
            assert len(set(found[12:16])) > 1 and len(set(found[:4])) == 1
            torch.manual_seed(1)
            assert VariantLM(shared, 0).generate_until(both)[12:] != expected[12:]
