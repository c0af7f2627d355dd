from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from booster_cases import SPEC, made
from safetensors import safe_open
from safetensors.torch import save_file

from aft_harness.boosters import file_format
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.provenance import Documents, Provenance, Score, TaskRecord
from aft_harness.errors import BoosterError

TRAINED: dict[str, Any] = {
    "base_model": {
        "name": "toy",
        "revision": None,
        "fingerprint": "f" * 64,
        "architecture": "LlamaForCausalLM",
        "layers": 4,
        "hidden_size": 8,
    },
    "method": "aft",
    "objective": "both",
    "choice_norm": "none",
    "tasks": [
        {
            "task": "arc_easy",
            "version": "1.0",
            "split": "train[0:100]",
            "n_train": 90,
            "n_development": 10,
            "num_fewshot": 0,
            "overlapping_dropped": 2,
            "goldless_dropped": 0,
            "weight": 2.0,
        }
    ],
    "prompting": {"num_fewshot": None, "apply_chat_template": False},
    "hyperparameters": {"lr": 0.05, "layers": [0, 1], "kind": "static"},
    "training_sha256": "a" * 64,
    "seed": 3,
    "dtype": "float32",
    "epoch_losses": [1.5, 0.25],
    "measured_on": "development",
    "before": {"loss": 1.5, "accuracy": 0.5, "n": 10, "measure": "training objective"},
    "after": {"loss": 0.5, "accuracy": None, "n": 10, "measure": "training objective"},
    "versions": {"torch": "2.9"},
    "date": "2025-11-14T00:00:00+00:00",
    "licence": "MIT",
    "documents": {"count": 2, "hashes": ["0" * 16, "1" * 16]},
}
"""What a training records."""

OLD: dict[str, Any] = {
    **{key: value for key, value in TRAINED.items() if key not in ("choice_norm", "training_sha256", "licence")},
    "before": {"loss": 1.5, "accuracy": 0.5, "n": 10},
    "after": {"loss": 0.5, "accuracy": 0.6, "n": 10},
    "layer_sweep": {"1": {"loss": 0.5, "accuracy": 0.6, "n": 10}},
}
"""What one recorded before scores said what they measure."""

EXTRACTED: dict[str, Any] = {
    "base_model": TRAINED["base_model"],
    "method": "function-vector",
    "questions": ["Why?", "What is 1 plus 1?"],
    "raw_norm": 12.5,
    "answered_correctly": 7,
}

MIXED: dict[str, Any] = {
    "method": "mix",
    "parts": [{"booster_sha256": "b" * 64, "strength": -0.5, "provenance": {"method": "aft", "seed": 1}}],
    "tasks": TRAINED["tasks"],
    "documents": {"count": 9, "unlisted": 7, "hashes": ["0" * 16, "1" * 16]},
    "start": {"booster_sha256": "c" * 64, "strength": 1.0},
}

LATER: dict[str, Any] = {
    "method": "aft",
    "keeping": {"text": "wikitext", "weight": 0.1},
    "tasks": [{"task": "arc_easy", "n_train": 3, "pairs": True}],
    "after": {"loss": 1.0, "perplexity": 2.0},
    "documents": {"count": 1, "hashes": ["0" * 16], "roles": ["training"]},
}
"""What a later version might record."""

A, B, C = (letter * 16 for letter in "abc")
"""Hashes of documents."""

FULL = {"trained": TRAINED, "old": OLD, "extracted": EXTRACTED, "mixed": MIXED, "later": LATER, "nothing": {}}


@pytest.mark.parametrize("name", FULL)
def test_what_is_read_is_written_again(name: str, tmp_path: Path) -> None:
    recorded = FULL[name]
    provenance = Provenance.of(recorded)
    assert provenance.to_json() == recorded
    assert Provenance.of(provenance) is provenance
    json.dumps(provenance.to_json(), allow_nan=False)
    path = tmp_path / "a.safetensors"
    made(1).with_provenance(**recorded).save(path)
    loaded = Booster.load(path)
    assert loaded.provenance == provenance
    loaded.save(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert json.loads(file.metadata()["aft"])["provenance"] == recorded
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_fields_have_types() -> None:
    provenance = Provenance.of(TRAINED)
    assert provenance.base_model == ModelIdentity(**TRAINED["base_model"])
    (task,) = provenance.tasks
    assert isinstance(task, TaskRecord) and (task.task, task.weight, task.overlapping_dropped) == ("arc_easy", 2.0, 2)
    assert provenance.before == Score(loss=1.5, accuracy=0.5, n=10, measure="training objective")
    assert provenance.epoch_losses == (1.5, 0.25) and provenance.licence == "MIT"
    assert (provenance.trained_on, provenance.trained_n) == (["arc_easy"], 90)
    assert provenance.hashes == {"0" * 16, "1" * 16} and provenance.unlisted == 0
    empty = Provenance.of(None)
    assert (empty.base_model, empty.trained_on, empty.trained_n, empty.hashes, empty.unlisted) == (
        None,
        [],
        0,
        frozenset(),
        0,
    )


def test_scores_of_old_files_do_not_say_what_they_measure() -> None:
    old = Provenance.of(OLD)
    assert old.after is not None and old.after.measure == ""
    assert old.layer_sweep is not None and old.layer_sweep["1"].accuracy == 0.6
    # Read, they are told apart from those that do: they cannot be compared.
    assert old.before != Provenance.of(TRAINED).before


def test_a_change_checks_and_keeps() -> None:
    changed = Provenance.of(LATER).changed(licence="MIT", seed=2)
    assert changed.to_json() == {**LATER, "licence": "MIT", "seed": 2}
    with pytest.raises(BoosterError, match="malformed provenance: seed: "):
        changed.changed(seed="many")


@pytest.mark.parametrize(
    ("documents", "unlisted"),
    [
        ({"count": 3, "hashes": [A, B]}, 0),  # two rows share a question
        ({"count": 3, "hashes": [A, B, C]}, 0),
        ({"count": 3, "sidecar": True}, 3),
        ({"count": 3}, 3),
        ({"count": 5, "unlisted": 3, "hashes": [A, B]}, 3),
        ({"count": 2, "unlisted": 0, "hashes": [A, B]}, 0),
        ({"hashes": [A]}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_documents_that_are_not_listed_are_counted(documents: dict[str, Any] | None, unlisted: int) -> None:
    provenance = Provenance.of({"documents": documents})
    assert provenance.unlisted == unlisted
    assert provenance.hashes == set((documents or {}).get("hashes", ()))
    if documents is not None:
        assert isinstance(provenance.documents, Documents)


def test_scores_are_ranked_by_loss_and_what_diverged_comes_last() -> None:
    scores = [Score(loss=float("nan")), Score(loss=2.0, accuracy=1.0), Score(loss=1.0, accuracy=0.0)]
    assert [score.loss for score in sorted(scores, key=lambda score: score.rank)][:2] == [1.0, 2.0]
    assert sorted(scores, key=lambda score: score.rank)[2] is scores[0]


NAN = float("nan")
MALFORMED: dict[str, tuple[Any, str]] = {
    "n_train is null": ({"tasks": [{"task": "a", "n_train": None}]}, r"tasks\.0\.n_train: "),
    "no task": ({"tasks": [{"n_train": 3}]}, r"tasks\.0\.task: "),
    "tasks is text": ({"tasks": "arc_easy"}, "tasks: "),
    "a task is a number": ({"tasks": [5]}, r"tasks\.0: "),
    "hashes is a number": ({"documents": {"count": 1, "hashes": 5}}, r"documents\.hashes: "),
    "a hash is a number": ({"documents": {"hashes": [5]}}, r"documents\.hashes\.0: "),
    "documents is a list": ({"documents": []}, "documents: "),
    "count is text": ({"documents": {"count": "many"}}, r"documents\.count: "),
    "base_model is text": ({"base_model": "x"}, "base_model: "),
    "a name is null": ({"base_model": {"name": None}}, r"base_model\.name: "),
    "layers is text": ({"base_model": {"layers": "x"}}, r"base_model\.layers: "),
    "a loss is NaN": ({"epoch_losses": [NAN]}, r"epoch_losses\.0: "),
    "a norm is infinite": ({"raw_norm": float("inf")}, "raw_norm: "),
    "a weight is NaN": ({"tasks": [{"task": "a", "weight": NAN}]}, r"tasks\.0\.weight: "),
    "measured_on another split": ({"measured_on": "test"}, "measured_on: "),
    "a score without loss": ({"after": {"n": 3}}, r"after\.loss: "),
    "a score is a number": ({"before": 0.5}, "before: "),
    "a seed is a list": ({"seed": [1]}, "seed: "),
    "parts is text": ({"parts": ["a"]}, r"parts\.0: "),
    "versions is a list": ({"versions": []}, "versions: "),
    "a number in quotes": ({"tasks": [{"task": "a", "n_train": "5"}]}, r"tasks\.0\.n_train: "),
    "half a document": ({"documents": {"count": 1.5}}, r"documents\.count: "),
    "less than no document": ({"documents": {"count": -1}}, r"documents\.count: "),
    "more documents than there are": ({"tasks": [{"task": "a", "n_train": 10**30}]}, r"tasks\.0\.n_train: "),
    "a truth for a number": ({"tasks": [{"task": "a", "n_train": True}]}, r"tasks\.0\.n_train: "),
    "a word for a hash": ({"documents": {"count": 1, "hashes": ["root:x:0:0"]}}, r"documents\.hashes\.0: "),
    "a hash and a line": ({"documents": {"count": 1, "hashes": ["0" * 16 + "\n"]}}, r"documents\.hashes\.0: "),
    "a date that is none": ({"date": "2025-13-45"}, "date: "),
    "a date in words": ({"date": "yesterday"}, "date: "),
    "a date of numbers": ({"date": 20250101}, "date: "),
    "a seed beyond 64 bits": ({"seed": 2**70}, "seed: "),
    "an accuracy of percents": ({"after": {"loss": 1.0, "accuracy": 55.0}}, r"after\.accuracy: "),
    "an accuracy of NaN": ({"after": {"loss": 1.0, "accuracy": NAN}}, r"after\.accuracy: "),
    "an unknown norm": ({"choice_norm": "words"}, "choice_norm: "),
    "a very long name": ({"method": "x" * 10**6}, "method: "),
    "a very long task": ({"tasks": [{"task": "x" * 10**6}]}, r"tasks\.0\.task: "),
    "a very long model": ({"base_model": {"name": "x" * 10**6}}, r"base_model\.name: "),
    "a negative size": ({"base_model": {"hidden_size": -1}}, r"base_model\.hidden_size: "),
    "a layer in words": ({"layer_sweep": {"first": {"loss": 1.0}}}, r"layer_sweep\.first.*: "),
    "a strength in words": ({"parts": [{"strength": "much"}]}, r"parts\.0\.strength: "),
    "start is text": ({"start": "a.safetensors"}, "start: "),
    "NaN in a field that is not known": ({"more": {"a": [1.0, NAN]}}, r"more\.a\.1: "),
    "infinity in the settings": ({"hyperparameters": {"lr": float("inf")}}, r"hyperparameters\.lr: "),
    "many digits": ({"hyperparameters": {"lr": 10**200}}, r"hyperparameters\.lr: "),
    "half a surrogate pair": ({"prompting": {"system_instruction": "\ud800"}}, r"prompting\.system_instruction: "),
    "hyperparameters is text": ({"hyperparameters": "lr"}, "hyperparameters: "),
}


def written(path: Path, provenance: Any) -> Path:
    header = provenance
    if not isinstance(provenance, str):
        header = json.dumps({"format_version": 1, "injections": {"1": SPEC}, "provenance": provenance})
    save_file({"layers.1.vector": torch.ones(8)}, path, metadata={"aft": header})
    return path


@pytest.mark.parametrize("name", MALFORMED)
def test_each_malformed_field_is_one_line_that_names_it_and_the_file(name: str, tmp_path: Path) -> None:
    provenance, field = MALFORMED[name]
    path = written(tmp_path / "bad.safetensors", provenance)
    with pytest.raises(BoosterError, match=rf"^{path}: malformed provenance: {field}\w") as caught:
        file_format.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(BoosterError, match="malformed"):
        Provenance.of(provenance)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "the 'aft' metadata is not valid JSON"),
        ("[" * 100_000 + "]" * 100_000, "the 'aft' metadata is not"),
        ('{"format_version": 1, "injections": {}, "provenance": 5}', "lacks 'provenance'"),
        (
            '{"format_version": 1, "injections": {}, "provenance": {"parts": ' + "[" * 100_000 + "]" * 100_000 + "}}",
            "is not valid JSON",
        ),
    ],
    ids=["open brackets", "brackets", "a number", "brackets inside"],
)
def test_metadata_of_any_kind_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.safetensors", text)
    with pytest.raises(BoosterError, match=rf"^{path}: .*{reason}") as caught:
        file_format.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("depth", "readable"), [(100, True), (400, False), (900, False)])
def test_what_is_read_can_be_written_however_deep(depth: int, readable: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "deep.safetensors", {"more": json.loads("[" * depth + "]" * depth)})
    if readable:
        file_format.load(path).save(tmp_path / "again.safetensors")
    else:
        with pytest.raises(BoosterError, match=rf"^{path}: malformed provenance: more\..*levels deep"):
            file_format.load(path)


def test_a_loss_that_diverged_is_null_in_a_file(tmp_path: Path) -> None:
    for loss in (NAN, float("inf")):
        path = tmp_path / "a.safetensors"
        made(1, before=Score(loss=loss, n=3), after={"loss": 1.0}).save(path)
        loaded = Booster.load(path).provenance
        assert loaded.before is not None and loaded.before.rank == float("inf") and loaded.before.n == 3
        assert loaded.to_json()["before"] == {"loss": None, "n": 3}


def test_documents_that_were_learned_are_recorded_with_the_rules_of_their_hashes() -> None:
    learned = Documents.learned([B, A, A])
    assert learned.model_dump(by_alias=True, exclude_unset=True) == {"count": 3, "normalisation": 2, "hashes": (A, B)}
    earlier = Documents(count=2, hashes=(C,), unlisted=1)
    nothing = Documents.learned([])
    both = Documents.union([learned, None, earlier, nothing])
    assert (both.count, both.unlisted, both.hashes, both.normalisation) == (4, 1, (A, B, C), 1)
    assert Documents.union([learned, nothing]).normalisation == 2
    assert Documents.union([None]).normalisation is None and Documents.union([]).count == 0


def test_a_provenance_that_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    long = made(1, hyperparameters={"text": "x" * 2**24})
    with pytest.raises(BoosterError, match=r"a\.safetensors: the metadata would have \d+ bytes"):
        long.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
    path = written(tmp_path / "b.safetensors", {"hyperparameters": {"text": "x" * 2**24}})
    with pytest.raises(BoosterError, match=r"b\.safetensors: the 'aft' metadata has \d+ bytes"):
        file_format.load(path)
