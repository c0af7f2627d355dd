from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aft_harness.training.lesson import Score
from click.testing import CliRunner, Result

from aft_harness.boosters.booster import Booster, mix
from aft_harness.cli import main
from aft_harness.errors import TaskError, TrainingError
from aft_harness.harness.evaluation import Variant, evaluate
from aft_harness.harness.examples import Prompting, TaskExamples, TaskSelection, load_tasks, task_examples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.studies import sweep
from aft_harness.training import train as training
from aft_harness.training.recipe import Settings

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
PROMPTING = Prompting(include_path=(TOYS,))
TEST = sweep.Test(["toy_choice"], PROMPTING)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def lm(checkpoint: str) -> SteeredHFLM:
    return SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)


def drawn(lm: SteeredHFLM, dev_docs: int = 6, limit: int = 8, name: str = "toy_choice") -> TaskExamples:
    ((chosen, task),) = load_tasks([TaskSelection(name, limit=limit, dev_docs=dev_docs)], [TOYS])
    return task_examples(chosen, task, PROMPTING, lm)


def booster(layer: int = 1, **provenance: Any) -> Booster:
    generator = torch.Generator().manual_seed(layer)
    return Booster.static({layer: torch.randn(32, generator=generator)}, provenance)


def test_strengths_are_chosen_on_development_and_reported_on_test_documents(lm: SteeredHFLM) -> None:
    task, values = drawn(lm), [0.0, 0.5, 2.0, 8.0]
    points = sweep.strengths(lm, booster(), values, [task], TEST)
    assert [point.variant.strength for point in points] == values
    totals = []
    for value, point in zip(values, points, strict=True):
        alone = SteeredHFLM(lm.pretrained, booster(), value, device="cpu", batch_size=8)
        losses = []
        right = 0
        for example in task.development:
            with alone._steering or torch.no_grad():
                (scored,) = alone.score_variants(example.requests, [alone._steering])
            sums = torch.tensor([score for score, _ in scored])
            losses.append(-float(sums.log_softmax(0)[list(example.gold)].logsumexp(0)))
            right += int(sums.argmax()) in example.gold
        assert point.development.n == len(task.development)
        assert point.development.accuracy == pytest.approx(right / len(task.development))
        assert point.development.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        totals.append(sum(losses))
        single = evaluate(lm, [Variant("a", booster(), value)], TEST.tasks, PROMPTING)[0]
        ((task_name, metric, paired),) = point.tests
        assert (task_name, metric) == ("toy_choice", "acc")
        assert paired.steered == pytest.approx(single.results["results"]["toy_choice"]["acc,none"])
    assert [point.chosen for point in points] == [total == min(totals) for total in totals]
    assert points[0].tests[0][2].delta == 0


def test_training_documents_do_not_choose(lm: SteeredHFLM) -> None:
    task = drawn(lm)
    known = [example.document for example in task.development]
    some = booster(documents={"hashes": known[:2]})
    points = sweep.strengths(lm, some, [1.0], [task], TEST)
    assert points[0].development.n == len(known) - 2
    with pytest.raises(TrainingError, match="development documents"):
        sweep.strengths(lm, booster(documents={"hashes": known}), [1.0], [task], TEST)


def test_documents_that_chose_are_not_reported_on(lm: SteeredHFLM) -> None:
    ((chosen, task),) = load_tasks([TaskSelection("toy_choice", train_docs="test[0:8]", dev_docs=3)], [TOYS])
    own = task_examples(chosen, task, PROMPTING, lm)
    for run in (
        lambda test: sweep.strengths(lm, booster(), [1.0], [own], test),
        lambda test: sweep.layers(lm, [own], Settings(epochs=1), [1], Path("nowhere"), test),
    ):
        with pytest.raises(TaskError, match=r"of 12 test documents of toy_choice are among .* --test-docs A:B"):
            run(TEST)
    apart = sweep.Test(["toy_choice"], PROMPTING, docs="8:")
    assert sweep.strengths(lm, booster(), [1.0], [own], apart)[0].tests[0][2].n == 4


def test_a_booster_that_lost_the_list_of_its_documents_is_not_swept(lm: SteeredHFLM, tmp_path: Path) -> None:
    many = booster(documents={"count": 2001, "hashes": [f"{number:016x}" for number in range(2001)]})
    many.save(tmp_path / "a.safetensors")
    assert sweep.strengths(lm, Booster.load(tmp_path / "a.safetensors"), [1.0], [drawn(lm)], TEST)
    (tmp_path / "a.safetensors.documents.txt").unlink()
    lost = Booster.load(tmp_path / "a.safetensors")
    with pytest.raises(TrainingError, match="the list of the booster's 2001 training documents is missing"):
        sweep.strengths(lm, lost, [1.0], [drawn(lm)], TEST)
    lost.save(tmp_path / "b.safetensors")
    assert Booster.load(tmp_path / "b.safetensors").provenance == lost.provenance
    assert mix([(lost, 1.0), (booster(), 1.0)]).provenance["documents"]["count"] == 2001


def test_a_variant_that_diverged_is_never_chosen() -> None:
    scores = [Score(float("nan"), None, 3), Score(2.0, 0.9, 3), Score(1.0, 0.4, 3)]
    assert min(scores, key=lambda score: score.rank) is scores[2]


def test_a_task_with_texts_is_swept_by_loss(lm: SteeredHFLM) -> None:
    points = sweep.strengths(lm, booster(), [0.0, 1.0, 4.0], [drawn(lm, name="toy_text")], TEST)
    assert all(point.development.accuracy is None for point in points)
    losses = [point.development.loss for point in points]
    assert [point.chosen for point in points] == [loss == min(losses) for loss in losses]


def test_a_task_without_right_and_wrong_cannot_be_swept(lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match="toy_rolling: no metric is one number a document"):
        sweep.strengths(lm, booster(), [1.0], [drawn(lm)], sweep.Test(["toy_rolling"], PROMPTING))


def test_an_interrupted_layer_sweep_goes_on_where_it_was(
    lm: SteeredHFLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, settings = drawn(lm), Settings(epochs=2, lr=0.1)
    (tmp_path / "whole").mkdir()
    whole = sweep.layers(lm, [task], settings, [0, 1, 2], tmp_path / "whole", TEST)
    folder = tmp_path / "cut"
    folder.mkdir()
    real, calls = training.train, []

    def train(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2].layers)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "train", train)
    with ScoreStore(folder / "scores.sqlite") as store, pytest.raises(KeyboardInterrupt):
        sweep.layers(lm, [task], settings, [0, 1, 2], folder, TEST, store)
    with ScoreStore(folder / "scores.sqlite") as store:
        points = sweep.layers(lm, [task], settings, [0, 1, 2], folder, TEST, store)
        assert calls == [(0,), (1,), (2,), (2,)]
        assert [point.tests for point in points] == [point.tests for point in whole]
        assert [point.chosen for point in points] == [point.chosen for point in whole]
        monkeypatch.setattr(SteeredHFLM, "score_variants", lambda *a, **k: pytest.fail("scored again"))
        baseline, *_ = evaluate(
            lm, [Variant("b"), *(p.variant for p in points)], ["toy_choice"], PROMPTING, store=store
        )
    assert baseline.results["results"]["toy_choice"]["acc,none"] == whole[0].tests[0][2].baseline


@pytest.mark.parametrize("changed", [{"lr": 0.2}, {"batch_size": 3}, {"kind": "contextual"}])
def test_a_booster_of_another_training_is_not_taken_for_this_one(
    lm: SteeredHFLM, changed: dict[str, Any], tmp_path: Path
) -> None:
    task = drawn(lm)
    first = sweep.layers(lm, [task], Settings(epochs=2, lr=0.1), [1], tmp_path, TEST)
    other = Settings(**{"epochs": 2, "lr": 0.1, **changed})
    second = sweep.layers(lm, [task], other, [1], tmp_path, TEST)
    fresh = training.train(lm, [task], Settings(**{**vars(other), "layers": (1,)}))
    assert second[0].variant.booster is not None and first[0].variant.booster is not None
    assert second[0].variant.booster.sha256 == fresh.booster.sha256 != first[0].variant.booster.sha256


def test_identity_follows_everything_a_training_depends_on(lm: SteeredHFLM) -> None:
    task, settings = drawn(lm), Settings(layers=(1,))
    identities = {
        training.training_identity(lm, [task], settings),
        training.training_identity(lm, [drawn(lm, limit=7)], settings),
        training.training_identity(lm, [drawn(lm, dev_docs=5)], settings),
        training.training_identity(lm, [task], Settings(layers=(2,))),
        training.training_identity(lm, [task], Settings(layers=(1,), seed=1)),
        training.training_identity(lm, [task], Settings(layers=(1,), objective="choice")),
    }
    assert len(identities) == 6
    # What is minimised counts, not whether it was asked for.
    assert training.training_identity(lm, [task], Settings(layers=(1,), objective="both")) in identities
    assert training.training_identity(lm, [drawn(lm)], settings) in identities
    trained = training.train(lm, [task], Settings(layers=(1,), epochs=1))
    own = training.training_identity(lm, [task], Settings(layers=(1,), epochs=1))
    assert trained.booster.provenance["training_sha256"] == own


def test_the_automatic_layer_is_the_best_on_development_documents(lm: SteeredHFLM) -> None:
    # Layers are chosen by the ranking of choices, whatever is minimised; here that is one loss: `after` is the oracle.
    task, settings = drawn(lm), Settings(epochs=2, lr=0.1, objective="choice")
    trained, scores = sweep.best_layer(lm, [task], settings, [0, 1, 2])
    alone = {layer: training.train(lm, [task], replace(settings, layers=(layer,))) for layer in (0, 1, 2)}
    best = min(alone, key=lambda layer: alone[layer].after.rank)
    assert trained.booster.layers == (best,) and trained.booster.sha256 == alone[best].booster.sha256
    for layer, run in alone.items():
        assert (scores[layer].accuracy, scores[layer].n) == (run.after.accuracy, run.after.n)
        assert scores[layer].loss == pytest.approx(run.after.loss, abs=1e-4)
    assert set(trained.booster.provenance["layer_sweep"]) == {"0", "1", "2"}
    with pytest.raises(TrainingError, match="--dev-docs"):
        sweep.best_layer(lm, [drawn(lm, dev_docs=0)], settings, [0])


def test_layers_and_strengths_are_read() -> None:
    assert sweep.parse_layers("all", 4) == [0, 1, 2, 3]
    assert sweep.parse_layers("10-12, 4,11", 30) == [10, 11, 12, 4]
    assert sweep.parse_strengths("0.5,1,-2,1") == [0.5, 1.0, -2.0]
    for text in ("4-", "-1", "5-3", "a", "", "1,,2"):
        with pytest.raises(TrainingError, match="--layers"):
            sweep.parse_layers(text, 30)
    for text in ("0.5,high", "", "nan", "1,inf"):
        with pytest.raises(TrainingError, match="--strengths"):
            sweep.parse_strengths(text)
    for count in (1, 2, 4, 30, 80):
        layers = sweep.automatic_layers(count)
        assert layers and all(0 <= layer < count for layer in layers) and len(layers) <= 6


def aft(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def common(checkpoint: str, folder: Path) -> list[object]:
    return [
        "--model",
        checkpoint,
        "--device",
        "cpu",
        "--tasks",
        "toy_choice",
        "--include-path",
        TOYS,
        "--output",
        folder,
    ]


def test_the_commands_write_a_table_and_a_plot(checkpoint: str, tmp_path: Path) -> None:
    options = common(checkpoint, tmp_path / "layers")
    result = aft("sweep", "layers", "--layers", "1-2", *options, "--limit", 6, "--dev-docs", 6, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "layer 1: loss" in result.stdout and "* chosen on development documents" in result.stdout
    rows = list(csv.DictReader((tmp_path / "layers" / "sweep.csv").open()))
    assert [row["layers"] for row in rows] == ["1", "2"] and sum(int(row["chosen"]) for row in rows) == 1
    assert all(row["n"] == "12" and row["development_n"] == "6" and row["trained_n"] == "6" for row in rows)
    assert (tmp_path / "layers" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path) not in (tmp_path / "layers" / "sweep.csv").read_text()
    vector = tmp_path / "layers" / "layer-01.safetensors"
    options = common(checkpoint, tmp_path / "strengths")
    command = ["sweep", "strengths", "--vector", vector, *options, "--dev-docs", 6, "--test-docs", "3:9"]
    result = aft(*command, "--strengths", "0,1,2")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "strengths" / "sweep.csv").open()))
    assert [float(row["strength"]) for row in rows] == [0, 1, 2] and {row["n"] for row in rows} == {"6"}
    for wrong, reason in (
        (["--strengths", "0.5,high"], "--strengths 0.5,high"),
        (["--strengths", "1", "--test-docs", "90:99"], "--docs 90:99"),
        (["--strengths", "1", "--dev-docs", "0"], "--dev-docs"),
    ):
        failed = aft(*command, *wrong)
        assert failed.exit_code == 1 and failed.stderr.splitlines()[-1].startswith("Error:"), failed.output
        assert reason in failed.stderr


def test_train_tries_layers_by_itself(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    options = [*common(checkpoint, path), "--limit", 6, "--epochs", 1, "--layer", "auto"]
    result = aft("train", *options, "--dev-docs", 6)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("on 6 development documents") >= 3
    assert Booster.load(path).provenance["layer_sweep"]
    failed = aft("train", *options)
    assert failed.exit_code == 1 and "--layer auto chooses on development documents" in failed.stderr


def test_ctrl_c_says_what_is_kept(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "layers", interrupted)
    result = aft("sweep", "layers", "--layers", "1", *common(checkpoint, tmp_path / "s"), "--dev-docs", 6)
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr
    assert os.listdir(tmp_path / "s") == ["scores.sqlite"]
