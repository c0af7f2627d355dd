"""By what finished work is found again: everything a training depends on, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_cases import examples, make_lm, plain

from aft_harness.boosters.booster import Booster
from aft_harness.harness.selection import PromptFormat
from aft_harness.training.identity import objective_names, trained_before, training_identity
from aft_harness.training.train import train


def test_identity_follows_everything_a_training_depends_on() -> None:
    lm = make_lm(double=False)
    other_model, other_dtype = make_lm(double=False, config={"seed": 1}), make_lm()

    def drawn(**changes: Any) -> Any:
        return examples(lm, **{"limit": 8, "dev_docs": 6, **changes})

    task, settings = drawn(), plain(layers=(1,))
    start = Booster.static({1: torch.ones(32)})
    identities = {
        "first": training_identity(lm, [task], settings),
        "fewer documents": training_identity(lm, [drawn(limit=7)], settings),
        "fewer development documents": training_identity(lm, [drawn(dev_docs=5)], settings),
        "weight": training_identity(lm, [drawn(weight=2.0)], settings),
        "prompts": training_identity(lm, [drawn(prompt_format=PromptFormat(num_fewshot=1))], settings),
        "layer": training_identity(lm, [task], plain(layers=(2,))),
        "seed": training_identity(lm, [task], plain(layers=(1,), seed=1)),
        "objective": training_identity(lm, [task], plain(layers=(1,), objective="choice")),
        "rate": training_identity(lm, [task], plain(layers=(1,), lr=0.5)),
        "start": training_identity(lm, [task], settings, start),
        "stronger start": training_identity(lm, [task], settings, start.scaled(2.0)),
        "model": training_identity(other_model, [task], settings),
        "dtype": training_identity(other_dtype, [task], settings),
        "order of tasks": training_identity(lm, [task, drawn(name="toy_text")], settings),
        "another order": training_identity(lm, [drawn(name="toy_text"), task], settings),
    }
    assert len(set(identities.values())) == len(identities)
    # What is minimised counts, not whether it was asked for; which layers, not how they are written.
    assert training_identity(lm, [task], plain(layers=(1,), objective="both")) == identities["first"]
    assert training_identity(lm, [task], plain(layers="1-1")) == identities["first"]
    assert training_identity(lm, [drawn()], settings) == identities["first"]


def test_a_booster_records_the_training_that_it_is_found_by(tmp_path: Path) -> None:
    lm = make_lm(double=False)
    task, settings = examples(lm, limit=4), plain(layers=(1,), epochs=1)
    identity = training_identity(lm, [task], settings)
    booster = train(lm, [task], settings).booster
    assert booster.provenance.training_sha256 == identity
    booster.save(tmp_path / "a.safetensors")
    found = trained_before(tmp_path / "a.safetensors", identity)
    assert found is not None and found.sha256 == booster.sha256
    assert trained_before(tmp_path / "a.safetensors", training_identity(lm, [task], replace(settings, lr=1.0))) is None
    assert trained_before(tmp_path / "nowhere.safetensors", identity) is None
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert trained_before(tmp_path / "broken.safetensors", identity) is None


def test_objectives_of_a_mixture_are_named_together() -> None:
    lm = make_lm(double=False)
    tasks = [examples(lm, limit=2), examples(lm, "toy_text", limit=2)]
    assert objective_names(tasks, plain()) == "answer+both"
    assert objective_names(tasks, plain(objective="answer")) == "answer"
    assert objective_names(tasks[:1], plain(objective="choice")) == "choice"
