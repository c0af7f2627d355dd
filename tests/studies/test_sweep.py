"""Sweeps of strengths and layers: chosen on development documents, reported on test documents, resumed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from gguf_cases import write_gguf

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.mixing import mix
from aft_harness.boosters.provenance import Score
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import ParseError, TaskError, TrainingError
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.examples import TaskExamples, draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks
from aft_harness.results import table
from aft_harness.results.statistics import holm
from aft_harness.slices import Slice
from aft_harness.studies import sweep
from aft_harness.training import train as training
from aft_harness.training.objective import RANKING_LOSS
from aft_harness.training.recipe import Settings

TASKS = Tasks([Path(__file__).parents[1] / "toy_tasks"])
TEST = sweep.Test(["toy_choice"], source=TASKS)


def settings(**changes: Any) -> Settings:
    return Settings(**{"epochs": 2, "lr": 0.1, "rate_unit": "absolute", "schedule": "constant", "keep": 0.0, **changes})


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def lm(checkpoint: str) -> SteeredHFLM:
    return SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)


def drawn(
    lm: SteeredHFLM, name: str = "toy_choice", prompt_format: PromptFormat | None = None, **selection: Any
) -> TaskExamples:
    chosen = TaskSelection(name, **{"limit": 8, "dev_docs": 6, **selection})
    (examples,) = draw([chosen], lm, prompt_format, source=TASKS)
    return examples


def booster(layer: int = 1, **provenance: Any) -> Variant:
    generator = torch.Generator().manual_seed(layer)
    return Variant("a", Booster.static({layer: torch.randn(32, generator=generator)}, provenance))


def test_strengths_are_chosen_on_development_and_reported_on_test_documents(lm: SteeredHFLM) -> None:
    task, values = drawn(lm), [0.0, 0.5, 2.0, 8.0]
    found = sweep.strengths(lm, booster(), values, [task], TEST)
    assert [point.variant.strength for point in found.points] == values
    assert [point.variant.name for point in found.points] == ["a at 0", "a at 0.5", "a at 2", "a at 8"]
    totals = []
    for value, point in zip(values, found.points, strict=True):
        alone = SteeredHFLM(lm.pretrained, booster().booster, value, device="cpu", batch_size=8)
        losses = []
        right = 0
        for example in task.development:
            with torch.no_grad():
                (scored,) = alone.score_variants(example.requests, [alone.variant])
            sums = torch.tensor([score for score, _ in scored])
            losses.append(-float(sums.log_softmax(0)[list(example.gold)].logsumexp(0)))
            right += int(sums.argmax()) in example.gold
        assert point.development.n == len(task.development) and point.development.measure == RANKING_LOSS
        assert point.development.accuracy == pytest.approx(right / len(task.development))
        assert point.development.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        totals.append(sum(losses))
        (single,) = evaluate(lm, [replace(booster(), strength=value)], TEST.tasks, source=TASKS)
        (row,) = point.rows
        assert (row["task"], row["metric"], row["strength"]) == ("toy_choice", "acc", value)
        assert row["steered"] == pytest.approx(single.results["results"]["toy_choice"]["acc,none"])
    assert [point.chosen for point in found.points] == [total == min(totals) for total in totals]
    assert found.chosen is found.points[totals.index(min(totals))]
    assert found.points[0].rows[0]["delta"] == 0
    # Strength 0 is the unchanged model.
    assert found.unchanged == found.points[0].development


def test_strengths_multiply_that_of_the_reference(lm: SteeredHFLM) -> None:
    task = drawn(lm)
    once = sweep.strengths(lm, booster(), [1.0, 2.0], [task], TEST)
    twice = sweep.strengths(lm, replace(booster(), strength=2.0), [0.5, 1.0], [task], TEST)
    assert [point.rows for point in once.points] == [point.rows for point in twice.points]
    assert [point.development for point in once.points] == [point.development for point in twice.points]


def test_variants_are_named_after_the_reference_and_their_strength(lm: SteeredHFLM) -> None:
    for name, strength, expected in (
        ("a.safetensors", 1.0, "a at 0.5"),
        ("a.safetensors:4", 4.0, "a at 2"),
        ("a.safetensors+b.safetensors:2", 1.0, "a+b:2 at 0.5"),
    ):
        (point,) = sweep.strengths(lm, Variant(name, booster().booster, strength), [0.5], [drawn(lm)], TEST).points
        assert point.variant.name == expected


def test_strengths_that_look_alike_are_kept_apart(lm: SteeredHFLM) -> None:
    found = sweep.strengths(lm, booster(), [0.12345678, 0.12345679], [drawn(lm)], TEST)
    assert [[row["strength"] for row in point.rows] for point in found.points] == [[0.12345678], [0.12345679]]


def test_the_table_has_the_one_schema_and_the_development_score(lm: SteeredHFLM, tmp_path: Path) -> None:
    found = sweep.strengths(lm, booster(), [0.5, 1.0], [drawn(lm)], sweep.Test(["toy_group"], source=TASKS))
    assert tuple(found.frame.columns) == (*table.COLUMNS, *table.DEVELOPMENT)
    assert found.frame["task"].tolist() == ["toy_choice", "toy_text"] * 2
    for point in found.points:
        mine = found.frame[found.frame["booster"] == point.variant.name]
        assert set(mine["development_loss"]) == {point.development.loss} and set(mine["development_n"]) == {6}
        assert set(mine["development_measure"]) == {RANKING_LOSS} and set(mine["chosen"]) == {int(point.chosen)}
    assert found.frame["chosen"].sum() == 2
    written, plot = found.save(tmp_path)
    pd.testing.assert_frame_equal(table.read(written), found.frame)
    assert (written.name, plot.name) == ("sweep.csv", "sweep.png") and plot.read_bytes()[:4] == b"\x89PNG"


def test_p_values_are_corrected_for_the_number_of_variants(lm: SteeredHFLM) -> None:
    task, variants = drawn(lm), []
    for layer, seed in ((3, 2), (2, 11), (1, 5)):
        vector = 8 * torch.randn(32, generator=torch.Generator().manual_seed(seed))
        variants.append(Variant(f"layer {layer}", Booster.static({layer: vector})))
    found = sweep.run(lm, variants, "layers", [task], task.development, TEST).frame
    assert min(found["p_value"]) < 1 / 3, "nothing to correct"
    assert found["p_holm"].tolist() == pytest.approx(holm(found["p_value"].tolist()))
    by_strength = sweep.strengths(lm, booster(), [1.0, 0.5], [task], TEST).frame
    assert by_strength["p_holm"].notna().tolist() == [True, False]


def test_training_documents_do_not_choose(lm: SteeredHFLM) -> None:
    task = drawn(lm)
    known = [example.document for example in task.development]
    some = booster(documents={"hashes": known[:2]})
    found = sweep.strengths(lm, some, [1.0], [task], TEST)
    assert found.points[0].development.n == found.unchanged.n == len(known) - 2
    with pytest.raises(TrainingError, match="development documents"):
        sweep.strengths(lm, booster(documents={"hashes": known}), [1.0], [task], TEST)


def test_documents_that_chose_are_not_reported_on(lm: SteeredHFLM) -> None:
    task = drawn(lm, train_docs="test[0:8]", dev_docs=3)
    for run in (
        lambda test: sweep.strengths(lm, booster(), [1.0], [task], test),
        lambda test: sweep.layers(lm, [task], settings(epochs=1), [1], Path("nowhere"), test),
    ):
        with pytest.raises(TaskError, match="of 12 test documents of toy_choice are among the training"):
            run(TEST)
    apart = replace(TEST, docs=Slice(8))
    assert sweep.strengths(lm, booster(), [1.0], [task], apart).points[0].rows[0]["n"] == 4


def test_a_booster_that_lost_the_list_of_its_documents_is_not_swept(lm: SteeredHFLM, tmp_path: Path) -> None:
    many = booster(documents={"count": 2001, "hashes": [f"{number:016x}" for number in range(2001)]}).booster
    assert many is not None
    many.save(tmp_path / "a.safetensors")
    whole = Variant("a", Booster.load(tmp_path / "a.safetensors"))
    assert sweep.strengths(lm, whole, [1.0], [drawn(lm)], TEST).points
    (tmp_path / "a.safetensors.documents.txt").unlink()
    lost = Booster.load(tmp_path / "a.safetensors")
    with pytest.raises(TrainingError, match="the list of the booster's 2001 training documents is missing"):
        sweep.strengths(lm, Variant("a", lost), [1.0], [drawn(lm)], TEST)
    lost.save(tmp_path / "b.safetensors")
    assert Booster.load(tmp_path / "b.safetensors").provenance == lost.provenance
    other = booster().booster
    assert other is not None
    documents = mix([(lost, 1.0), (other, 1.0)]).provenance.documents
    assert documents is not None and documents.count == 2001


def test_the_baseline_cannot_be_swept(lm: SteeredHFLM) -> None:
    with pytest.raises(TrainingError, match="no booster to sweep"):
        sweep.strengths(lm, BASELINE, [1.0], [drawn(lm)], TEST)


def test_a_variant_that_diverged_is_never_chosen() -> None:
    scores = [Score(loss=float("nan")), Score(loss=2.0, accuracy=0.9), Score(loss=1.0, accuracy=0.4)]
    assert min(scores, key=lambda score: score.rank) is scores[2]


def test_a_task_with_texts_is_swept_by_loss(lm: SteeredHFLM) -> None:
    found = sweep.strengths(lm, booster(), [0.0, 1.0, 4.0], [drawn(lm, "toy_text")], TEST)
    assert all(point.development.accuracy is None for point in found.points)
    losses = [point.development.loss for point in found.points]
    assert [point.chosen for point in found.points] == [loss == min(losses) for loss in losses]


def test_a_task_without_right_and_wrong_cannot_be_swept(lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match="toy_rolling: a sweep needs a metric with one number per document"):
        sweep.strengths(lm, booster(), [1.0], [drawn(lm)], replace(TEST, tasks=["toy_rolling"]))


def test_layers_are_chosen_on_development_documents_of_boosters_trained_there(lm: SteeredHFLM, tmp_path: Path) -> None:
    task, seen = drawn(lm), []
    found = sweep.layers(
        lm, [task], settings(), [2, 0], tmp_path, TEST, on_training=lambda *progress: seen.append(progress)
    )
    assert [point.variant.name for point in found.points] == ["layer 2", "layer 0"]
    assert found.frame["layers"].tolist() == ["2", "0"]
    for point, layer in zip(found.points, (2, 0), strict=True):
        alone = training.train(lm, [task], settings(layers=layer)).booster
        assert point.variant.booster is not None and point.variant.booster.sha256 == alone.sha256
        assert Booster.load(tmp_path / f"layer-{layer:02d}.safetensors").sha256 == alone.sha256
    assert found.chosen.development.loss == min(point.development.loss for point in found.points)
    assert found.unchanged.loss not in {point.development.loss for point in found.points}
    assert {progress[:2] for progress in seen} == {(0, 2), (1, 2)}


def test_a_booster_of_a_layer_sweep_records_the_prompts_that_it_learned_from(lm: SteeredHFLM, tmp_path: Path) -> None:
    learned, reported = PromptFormat(num_fewshot=1, system_instruction="Be brief."), PromptFormat(num_fewshot=2)
    test = replace(TEST, prompt_format=reported)
    (point,) = sweep.layers(lm, [drawn(lm, prompt_format=learned)], settings(), [1], tmp_path, test).points
    assert point.variant.booster is not None
    provenance = point.variant.booster.provenance
    assert provenance.prompting == asdict(learned) and provenance.tasks[0].num_fewshot == 1
    assert point.rows[0]["num_fewshot"] == 2


def test_an_interrupted_layer_sweep_resumes_where_it_was(
    lm: SteeredHFLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = drawn(lm)
    (tmp_path / "whole").mkdir()
    whole = sweep.layers(lm, [task], settings(), [0, 1, 2], tmp_path / "whole", TEST)
    folder = tmp_path / "cut"
    folder.mkdir()
    real, calls = training.train, []

    def train(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2].layers.text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "train", train)
    with ScoreStore(folder / "scores.sqlite") as store, pytest.raises(KeyboardInterrupt):
        sweep.layers(lm, [task], settings(), [0, 1, 2], folder, TEST, store)
    with ScoreStore(folder / "scores.sqlite") as store:
        resumed = sweep.layers(lm, [task], settings(), [0, 1, 2], folder, TEST, store)
        assert calls == ["0", "1", "2", "2"]
        assert resumed.unchanged == whole.unchanged
        pd.testing.assert_frame_equal(resumed.frame, whole.frame)
        monkeypatch.setattr(SteeredHFLM, "score_variants", lambda *a, **k: pytest.fail("scored again"))
        variants = [BASELINE, *(point.variant for point in resumed.points)]
        baseline, *_ = evaluate(lm, variants, ["toy_choice"], source=TASKS, store=store)
    assert baseline.results["results"]["toy_choice"]["acc,none"] == whole.points[0].rows[0]["baseline"]


@pytest.mark.parametrize("changed", [{"lr": 0.2}, {"batch_size": 3}, {"kind": "contextual"}])
def test_a_booster_of_another_training_is_not_taken_for_this_one(
    lm: SteeredHFLM, changed: dict[str, Any], tmp_path: Path
) -> None:
    task, other = drawn(lm), settings(**changed)
    (first,) = sweep.layers(lm, [task], settings(), [1], tmp_path, TEST).points
    (second,) = sweep.layers(lm, [task], other, [1], tmp_path, TEST).points
    fresh = training.train(lm, [task], replace(other, layers=1))
    assert second.variant.booster is not None and first.variant.booster is not None
    assert second.variant.booster.sha256 == fresh.booster.sha256 != first.variant.booster.sha256


def test_the_automatic_layer_is_the_best_on_development_documents(lm: SteeredHFLM) -> None:
    # Layers are chosen by the ranking of choices, whatever is minimised; here that is one loss: `after` is the oracle.
    task, how = drawn(lm), settings(objective="choice", temperature=1.0)
    trained, scores = sweep.best_layer(lm, [task], how, [0, 1, 2])
    alone = {layer: training.train(lm, [task], replace(how, layers=layer)) for layer in (0, 1, 2)}
    best = min(alone, key=lambda layer: alone[layer].after.rank)
    assert trained.booster.layers == (best,) and trained.booster.sha256 == alone[best].booster.sha256
    for layer, run in alone.items():
        assert (scores[layer].accuracy, scores[layer].n) == (run.after.accuracy, run.after.n)
        assert scores[layer].loss == pytest.approx(run.after.loss, abs=1e-4)
    assert trained.booster.provenance.layer_sweep == {str(layer): score for layer, score in scores.items()}
    none = drawn(lm, dev_docs=0)
    with pytest.raises(TrainingError, match="layers are chosen on development documents; set some aside"):
        sweep.best_layer(lm, [none], how, [0])
    with pytest.raises(TrainingError, match="chooses on development documents; set some aside"):
        sweep.layers(lm, [none], how, [0], Path("nowhere"), TEST)


def test_layers_that_are_tried_by_themselves_are_spread_over_the_model() -> None:
    assert sweep.automatic_layers(28) == [4, 8, 12, 16, 20, 24]
    for count in (1, 2, 4, 30, 80):
        layers = sweep.automatic_layers(count)
        assert layers and all(0 <= layer < count for layer in layers) and len(layers) <= 6


def test_strengths_are_read() -> None:
    assert sweep.parse_strengths("0.5,1,-2,1") == [0.5, 1.0, -2.0]
    for text in ("0.5,high", "", "nan", "1,inf", "1,,2"):
        with pytest.raises(ParseError, match=f"strengths '{text}': expected finite numbers"):
            sweep.parse_strengths(text)


def test_a_gguf_file_is_swept_as_its_checkpoint(
    lm: SteeredHFLM, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra gguf)")
    from aft_harness.harness.gguf import SteeredGgufLM

    file = SteeredGgufLM(
        write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), tiny_tokenizer), n_threads=1, device="cpu"
    )
    (task,) = draw([TaskSelection("toy_choice", limit=8, dev_docs=6)], file, source=TASKS)
    assert task == drawn(lm)  # made of the same tokens
    ours, theirs = (sweep.strengths(each, booster(), [0.0, 1.0, 4.0], [task], TEST) for each in (file, lm))
    assert [point.chosen for point in ours.points] == [point.chosen for point in theirs.points]
    for point, expected in zip(ours.points, theirs.points, strict=True):
        assert point.development.loss == pytest.approx(expected.development.loss, abs=1e-3)
        assert [row["steered"] for row in point.rows] == [row["steered"] for row in expected.rows]
    assert ours.unchanged == ours.points[0].development
