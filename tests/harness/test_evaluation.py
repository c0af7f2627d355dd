from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.documents import text_hash
from aft_harness.cli import main
from aft_harness.errors import BoosterError, TaskError
from aft_harness.harness.evaluation import Variant, evaluate, paired
from aft_harness.harness.examples import Prompting
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results.pairing import compare_samples, read_samples

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
TASKS = ["toy_choice", "toy_mutual", "toy_text", "toy_rolling"]
PROMPTING = Prompting(num_fewshot=1, include_path=(TOYS,))


def booster(layer: int, seed: int = 0, **provenance: Any) -> Booster:
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(32, generator=generator)}, provenance)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def numbers(results: dict[str, Any]) -> list[float]:
    return [value for task in TASKS for value in results["results"][task].values() if isinstance(value, float)]


def test_one_pass_over_all_variants_equals_single_runs(checkpoint: str) -> None:
    variants = [
        Variant("base"),
        Variant("a", booster(1), 0.5),
        Variant("b", booster(2, 1)),
        Variant("zero", booster(1), 0),
    ]
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)
    found = evaluate(lm, variants, TASKS, PROMPTING)
    for variant, ours in zip(variants, found, strict=True):
        alone = simple_evaluate(
            model=SteeredHFLM(checkpoint, variant.booster, variant.strength, device="cpu", batch_size=8),
            tasks=TASKS,
            task_manager=TaskManager(include_path=TOYS),
            num_fewshot=1,
            bootstrap_iters=0,
        )
        assert numbers(ours.results) == pytest.approx(numbers(alone), abs=1e-5)
        for task in TASKS:
            for one, other in zip(ours.results["samples"][task], alone["samples"][task], strict=True):
                assert (one["doc_hash"], one["prompt_hash"]) == (other["doc_hash"], other["prompt_hash"])
        said = ours.results["config"]["aft"]
        assert said["booster_sha256"] == (variant.booster.sha256 if variant.booster else None)
    assert numbers(found[0].results) == numbers(found[3].results) != numbers(found[2].results)
    assert lm.booster is None


def test_requests_are_scored_once_for_all_variants(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)
    passes: list[int] = []
    score = SteeredHFLM.score_variants

    def spy(self: Any, requests: Any, variants: Any, **kwargs: Any) -> Any:
        passes.append(len(requests))
        return score(self, requests, variants, **kwargs)

    monkeypatch.setattr(SteeredHFLM, "score_variants", spy)
    evaluate(lm, [Variant("base"), Variant("a", booster(1)), Variant("b", booster(2))], ["toy_choice"], PROMPTING)
    assert passes == [12 * 3]


def test_an_interrupted_pass_goes_on_with_what_is_missing(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In half precision a request's score depends on the rows it shares a batch with: going on must lay them out alike.
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=1, dtype="bfloat16")
    variants = [Variant("base"), Variant("a", booster(1), 0.5), Variant("b", booster(2, 1))]
    fresh = evaluate(lm, variants, TASKS[:2], PROMPTING)
    told: list[int] = []

    def interrupted(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "scores.sqlite"
    with ScoreStore(path) as store, pytest.raises(KeyboardInterrupt):
        evaluate(lm, variants[:2], TASKS[:2], PROMPTING, store=store, on_progress=interrupted)
    asked: list[tuple[int, int]] = []
    score = SteeredHFLM.score_variants

    def spy(self: Any, requests: Any, variants: Any, **kwargs: Any) -> Any:
        asked.append((len(requests) - len(kwargs["known"]), len(variants)))
        return score(self, requests, variants, **kwargs)

    monkeypatch.setattr(SteeredHFLM, "score_variants", spy)
    with ScoreStore(path) as store:
        known = evaluate(lm, variants[:2], TASKS[:1], PROMPTING, store=store)
        assert asked == [(36 - told[-1], 2)] and 0 < told[-1] < 36
        found = evaluate(lm, variants, TASKS[:2], PROMPTING, store=store)
        # Only the new variant lacks the first task; nobody has the second.
        assert (36, 1) in asked[1:] and sorted(variants for _, variants in asked[1:]) == [1, 3]
    for one, other in zip([*found, *known], [*fresh, *fresh[:2]], strict=True):
        for task in one.results["samples"]:
            pairs = zip(one.results["samples"][task], other.results["samples"][task], strict=True)
            for sample, expected in pairs:
                assert sample["filtered_resps"] == expected["filtered_resps"]


def test_interrupted_generation_goes_on_with_the_next_batch(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=5)
    variants = [Variant("base"), Variant("a", booster(1), 3.0)]
    fresh = evaluate(lm, variants, ["toy_text"], PROMPTING)

    def texts(found: list[Any]) -> list[Any]:
        return [[line["resps"] for line in one.results["samples"]["toy_text"]] for one in found]

    def interrupted(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with ScoreStore(tmp_path / "s.sqlite") as store, pytest.raises(KeyboardInterrupt):
        evaluate(lm, variants, ["toy_text"], PROMPTING, store=store, on_progress=interrupted)
    sizes: list[int] = []
    generate = SteeredHFLM.generate_until

    def spy(self: Any, requests: Any) -> Any:
        sizes.append(len(requests))
        return generate(self, requests)

    monkeypatch.setattr(SteeredHFLM, "generate_until", spy)
    with ScoreStore(tmp_path / "s.sqlite") as store:
        assert texts(evaluate(lm, variants, ["toy_text"], PROMPTING, store=store)) == texts(fresh)
        assert sizes == [2, 5, 5, 2]  # the baseline's last batch, and all of the booster's
        evaluate(lm, variants, ["toy_text"], PROMPTING, store=store)
    assert len(sizes) == 4 and texts(fresh)[0] != texts(fresh)[1]


def test_output_folders_are_those_of_lm_eval(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)
    base, steered = evaluate(
        lm, [Variant("base"), Variant("a", booster(1), 3.0)], ["toy_choice"], PROMPTING, output=tmp_path
    )
    without, with_booster = (read_samples(tmp_path / name, "toy_choice") for name in ("base", "a"))
    from_files = compare_samples(without, with_booster, metric="acc")
    assert list(paired(base, steered)) == [("toy_choice", "acc", from_files)]
    assert from_files.n == 12 and list((tmp_path / "a").rglob("results_*.json"))


def test_it_warns_of_training_documents_and_refuses_what_does_not_fit(
    checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)
    asked = evaluate(lm, [Variant("base")], ["toy_choice"], PROMPTING)[0].results["samples"]["toy_choice"][0]["doc"]
    trained = booster(1, documents={"hashes": [text_hash(asked["question"])]})
    with caplog.at_level(logging.WARNING, "aft_harness"):
        evaluate(lm, [Variant("base"), Variant("a", trained)], ["toy_choice"], PROMPTING)
    assert "1 of 12 documents of toy_choice are among the booster's training documents" in caplog.text
    with pytest.raises(BoosterError, match="out of range"):
        evaluate(lm, [Variant("base"), Variant("a", booster(9))], ["toy_choice"], PROMPTING)
    with pytest.raises(TaskError, match="toy_choise"):
        evaluate(lm, [Variant("base")], ["toy_choise"], PROMPTING)


def test_the_command_prints_the_paired_table(checkpoint: str, tmp_path: Path) -> None:
    for name, layer in (("a", 1), ("b", 2)):
        booster(layer).save(tmp_path / f"{name}.safetensors")
    common = ["evaluate", "--model", checkpoint, "--tasks", "toy_choice", "--include_path", TOYS, "--device", "cpu"]
    vectors = [f"{tmp_path}/a.safetensors:2", f"{tmp_path}/b.safetensors"]
    options = ["--vector", vectors[0], "--vector", vectors[1], "--limit", "6", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*common, *options])
    assert result.exit_code == 0, result.stderr
    for vector in vectors:
        assert f"{vector}\n  toy_choice acc: n = 6, " in result.stdout
    assert result.stdout.count("exact McNemar p = ") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"baseline", "variant1", "variant2"}
    for wrong, reason in (
        (["--vector", "nowhere.safetensors"], "no such booster"),
        ([*options[:2], "--tasks", "zzz"], "zzz"),
    ):
        failed = CliRunner().invoke(main, [*common, *wrong])
        assert failed.exit_code == 1 and failed.stderr.startswith("Error:") and reason in failed.stderr
