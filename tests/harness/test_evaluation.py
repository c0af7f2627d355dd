from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness_cases import TOYS, booster, drawn
from lm_eval import simple_evaluate
from lm_eval.api.task import Task
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from aft_harness.boosters.documents import text_hash
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import BoosterError, FileError, TaskError
from aft_harness.harness.evaluation import VariantResults, evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.tasks import Tasks
from aft_harness.results.pairing import compare_samples, read_samples
from aft_harness.results.runs import read_runs, rows
from aft_harness.slices import Slice

TASKS = ["toy_choice", "toy_mutual", "toy_text", "toy_rolling"]
ONE_SHOT = PromptFormat(num_fewshot=1)
VARIANTS = [BASELINE, Variant("a", booster(1, 0), 0.5), Variant("b", booster(2, 1)), Variant("zero", booster(1, 0), 0)]

UNLIKE = {"date", "total_evaluation_time_seconds", "start_time", "end_time"}
"""What tells when a run took place."""

OF_THE_CALL = {"model", "model_args", "batch_size", "device"}
"""What repeats how the evaluator was called."""


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def lm(checkpoint: str) -> SteeredHFLM:
    return SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=8)


def toys() -> Tasks:
    return Tasks([TOYS])


def stock(checkpoint: str, variant: Variant, tasks: list[str], **options: Any) -> dict[str, Any]:
    """The stock evaluator, on one variant alone, with tasks that nothing has touched."""
    found: dict[str, Any] = simple_evaluate(
        model=SteeredHFLM(checkpoint, variant.booster, variant.strength, device="cpu", batch_size=8),
        tasks=tasks,
        task_manager=TaskManager(include_path=TOYS),
        bootstrap_iters=0,
        **options,
    )
    return found


def plain(value: Any) -> Any:
    """As a results file would hold it."""
    return json.loads(json.dumps(value, sort_keys=True, default=repr))


def assert_same(ours: Any, theirs: Any, where: str = "results") -> None:
    """The same values everywhere, numbers up to what another layout of the rows changes."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for place, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(left, right, f"{where}.{place}")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-4), where
    elif _is_number(ours) and _is_number(theirs):  # loglikelihoods are written as text among the responses
        assert float(ours) == pytest.approx(float(theirs), abs=1e-4), where
    else:
        assert ours == theirs, where


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    found = plain({key: value for key, value in results.items() if key not in UNLIKE})
    found["config"] = {key: value for key, value in found["config"].items() if key not in OF_THE_CALL}
    return dict(found)


@pytest.mark.parametrize(
    ("tasks", "prompt_format"),
    [
        (TASKS, ONE_SHOT),
        (["toy_group", "toy_blanks", "toy_named_gold"], PromptFormat(num_fewshot=3, system_instruction="Be short.")),
    ],
    ids=["one shot", "a group"],
)
def test_the_results_of_each_variant_are_those_of_the_stock_evaluator_alone(
    checkpoint: str, lm: SteeredHFLM, tasks: list[str], prompt_format: PromptFormat
) -> None:
    found = evaluate(lm, VARIANTS[:3], tasks, prompt_format, source=toys())
    for variant, ours in zip(VARIANTS, found, strict=False):
        alone = stock(
            checkpoint,
            variant,
            tasks,
            num_fewshot=prompt_format.num_fewshot,
            system_instruction=prompt_format.system_instruction,
        )
        assert set(ours.results) ^ set(alone) <= UNLIKE
        assert set(ours.results["config"]) == set(alone["config"])
        for part in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples"):
            assert ours.results[part], part
        assert_same(comparable(ours.results), comparable(alone))
    scores = [json.dumps(plain(each.results["samples"])) for each in found]
    assert len(set(scores)) == 3, "a booster changes the scores"


@pytest.mark.parametrize("names", [["toy_choice", "toy_group"], ["toy_group", "toy_choice"]])
def test_a_task_beside_its_group_is_evaluated_once(lm: SteeredHFLM, names: list[str]) -> None:
    (both,), (group,) = (evaluate(lm, [BASELINE], asked, source=toys()) for asked in (names, ["toy_group"]))
    assert comparable(both.results) == comparable(group.results)


def test_strength_zero_is_the_baseline_and_the_model_keeps_no_variant(lm: SteeredHFLM) -> None:
    base, *_, zero = evaluate(lm, VARIANTS, ["toy_choice"], ONE_SHOT, source=toys())
    assert plain(base.results["samples"]) == plain(zero.results["samples"])
    assert lm.variant is BASELINE
    records = [each.results["config"]["aft"]["booster_sha256"] for each in (base, zero)]
    assert records == [None, booster(1, 0).sha256]


def test_tasks_are_loaded_and_prompts_built_once_whatever_the_number_of_variants(
    lm: SteeredHFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    build, load = Task.build_all_requests, TaskManager.load

    def spy_build(self: Any, **options: Any) -> None:
        calls[f"build {self.config.task}"] += 1
        build(self, **options)

    def spy_load(self: Any, name: Any) -> Any:
        calls[f"load {name}"] += 1
        return load(self, name)

    monkeypatch.setattr(Task, "build_all_requests", spy_build)
    monkeypatch.setattr(TaskManager, "load", spy_load)
    evaluate(lm, VARIANTS, ["toy_group", "toy_mutual"], ONE_SHOT, source=toys())
    assert calls == {
        "load toy_group": 1,
        "load toy_mutual": 1,
        "build toy_choice": 1,
        "build toy_text": 1,
        "build toy_mutual": 1,
    }


def test_a_task_that_was_learned_from_is_evaluated_like_a_fresh_one(lm: SteeredHFLM) -> None:
    used = toys()
    for name in ("toy_choice", "toy_text"):
        drawn(name, lm, PromptFormat(num_fewshot=5), source=used, dev_docs=3)
    # The number of shots that was asked for before leaves no trace.
    for prompt_format in (ONE_SHOT, PromptFormat(num_fewshot=2), PromptFormat()):
        ours, fresh = (
            evaluate(lm, VARIANTS[:2], ["toy_group"], prompt_format, source=source) for source in (used, toys())
        )
        for left, right in zip(ours, fresh, strict=True):
            assert comparable(left.results) == comparable(right.results)
    # And the other way round.
    again, expected = (drawn("toy_choice", lm, ONE_SHOT, source=source) for source in (used, toys()))
    assert again == expected and again.train


def test_each_variant_answers_the_same_documents_when_a_task_shuffles_them(lm: SteeredHFLM) -> None:
    found = evaluate(lm, VARIANTS[:2], ["toy_shuffled"], source=toys())
    base, steered = (each.results["samples"]["toy_shuffled"] for each in found)
    for left, right in zip(base, steered, strict=True):
        assert left["doc"] == right["doc"] and left["arguments"] == right["arguments"]
        asked = (
            [left["arguments"][f"gen_args_{place}"]["arg_1"].strip() for place in range(3)]
            if isinstance(left["arguments"], dict)
            else [continuation.strip() for _, continuation in left["arguments"]]
        )
        assert asked == left["doc"]["choices"] and asked[left["target"]] == left["doc"]["answer"]


def test_requests_are_scored_once_for_all_variants(lm: SteeredHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    score = SteeredHFLM.score_variants

    def spy(self: Any, requests: Any, variants: Any, **kwargs: Any) -> Any:
        passes.append(len(requests))
        return score(self, requests, variants, **kwargs)

    monkeypatch.setattr(SteeredHFLM, "score_variants", spy)
    evaluate(lm, VARIANTS[:3], ["toy_choice"], ONE_SHOT, source=toys())
    assert passes == [12 * 3]


def test_documents_are_those_of_a_slice_or_the_first(lm: SteeredHFLM) -> None:
    def ids(**asked: Any) -> list[int]:
        (found,) = evaluate(lm, [BASELINE], ["toy_choice"], source=toys(), **asked)
        return sorted(sample["doc_id"] for sample in found.results["samples"]["toy_choice"])

    assert ids(docs=Slice(3, 6)) == [3, 4, 5] and ids(docs=Slice(10)) == [10, 11] and ids(limit=2) == [0, 1]
    with pytest.raises(TaskError, match="documents 50:60: task toy_choice has no documents in this range"):
        ids(docs=Slice(50, 60))


def test_an_interrupted_pass_goes_on_with_what_is_missing(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In half precision a request's score depends on the rows it shares a batch with: going on must lay them out alike.
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=1, dtype="bfloat16")
    variants = VARIANTS[:3]
    fresh = evaluate(lm, variants, TASKS[:2], ONE_SHOT, source=toys())
    counts: list[int] = []

    def interrupted(done: int, total: int) -> None:
        counts.append(done)
        if len(counts) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "scores.sqlite"
    with ScoreStore(path) as store, pytest.raises(KeyboardInterrupt):
        evaluate(lm, variants[:2], TASKS[:2], ONE_SHOT, source=toys(), store=store, on_progress=interrupted)
    asked: list[tuple[int, int]] = []
    score = SteeredHFLM.score_variants

    def spy(self: Any, requests: Any, variants: Any, **kwargs: Any) -> Any:
        asked.append((len(requests) - len(kwargs["known"]), len(variants)))
        return score(self, requests, variants, **kwargs)

    monkeypatch.setattr(SteeredHFLM, "score_variants", spy)
    with ScoreStore(path) as store:
        known = evaluate(lm, variants[:2], TASKS[:1], ONE_SHOT, source=toys(), store=store)
        assert asked == [(36 - counts[-1], 2)] and 0 < counts[-1] < 36
        found = evaluate(lm, variants, TASKS[:2], ONE_SHOT, source=toys(), store=store)
        # Only the new variant lacks the first task; nobody has the second.
        assert (36, 1) in asked[1:] and sorted(variants for _, variants in asked[1:]) == [1, 3]
    for one, other in zip([*found, *known], [*fresh, *fresh[:2]], strict=True):
        for task in one.results["samples"]:
            pairs = zip(one.results["samples"][task], other.results["samples"][task], strict=True)
            for sample, expected in pairs:
                assert sample["filtered_resps"] == expected["filtered_resps"]


def test_interrupted_generation_goes_on_with_the_next_call(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = SteeredHFLM(pretrained=checkpoint, device="cpu", batch_size=1)  # four texts a call
    variants = [BASELINE, Variant("a", booster(1, 0), 3.0)]
    fresh = evaluate(lm, variants, ["toy_text"], ONE_SHOT, source=toys())

    def texts(found: list[VariantResults]) -> list[Any]:
        return [[line["resps"] for line in one.results["samples"]["toy_text"]] for one in found]

    def interrupted(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with ScoreStore(tmp_path / "s.sqlite") as store, pytest.raises(KeyboardInterrupt):
        evaluate(lm, variants, ["toy_text"], ONE_SHOT, source=toys(), store=store, on_progress=interrupted)
    sizes: list[int] = []
    generate = SteeredHFLM.generate_until

    def spy(self: Any, requests: Any, **options: Any) -> Any:
        sizes.append(len(requests))
        return generate(self, requests, **options)

    monkeypatch.setattr(SteeredHFLM, "generate_until", spy)
    with ScoreStore(tmp_path / "s.sqlite") as store:
        assert texts(evaluate(lm, variants, ["toy_text"], ONE_SHOT, source=toys(), store=store)) == texts(fresh)
        assert sizes == [4, 4, 4, 4]  # the baseline's last call, and all of the booster's
        evaluate(lm, variants, ["toy_text"], ONE_SHOT, source=toys(), store=store)
    assert len(sizes) == 4 and texts(fresh)[0] != texts(fresh)[1]


def test_output_folders_are_those_of_lm_eval(lm: SteeredHFLM, tmp_path: Path) -> None:
    variants = [BASELINE, Variant("a.safetensors:3", booster(1, 0), 3.0)]
    base, steered = evaluate(lm, variants, ["toy_choice"], ONE_SHOT, source=toys(), output=tmp_path)
    without, with_booster = (read_samples(tmp_path / name, "toy_choice") for name in ("baseline", "a-3"))
    from_files = compare_samples(without, with_booster, metric="acc")
    (row,) = rows([base.run, steered.run])
    assert (row["task"], row["metric"], row["booster"], row["strength"]) == ("toy_choice", "acc", variants[1].name, 3.0)
    assert {name: row[name] for name in ("n", "baseline", "steered", "delta", "gained", "lost", "p_value")} == {
        "n": from_files.n,
        "baseline": from_files.baseline,
        "steered": from_files.steered,
        "delta": from_files.delta,
        "gained": from_files.gained,
        "lost": from_files.lost,
        "p_value": from_files.p_value,
    }
    assert from_files.n == 12 and list((tmp_path / "a-3").rglob("results_*.json"))


def test_it_warns_of_training_documents_and_refuses_what_does_not_fit(
    lm: SteeredHFLM, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = evaluate(lm, [BASELINE], ["toy_choice"], ONE_SHOT, source=toys())
    asked = found.results["samples"]["toy_choice"][0]["doc"]
    trained = booster(1, documents={"hashes": [text_hash(asked["question"])]})
    with caplog.at_level(logging.WARNING, "aft_harness"):
        evaluate(lm, [BASELINE, Variant("a", trained)], ["toy_choice"], ONE_SHOT, source=toys())
    assert "1 of 12 documents of toy_choice are among the booster's training documents" in caplog.text
    with pytest.raises(BoosterError, match="out of range"):
        evaluate(lm, [BASELINE, Variant("a", booster(9))], ["toy_choice"], ONE_SHOT, source=toys())
    with pytest.raises(TaskError, match="toy_choise"):
        evaluate(lm, [BASELINE], ["toy_choise"], ONE_SHOT, source=toys())


@pytest.mark.parametrize("lost", ["results", "samples", "all samples"])
def test_output_that_was_not_written_whole_is_an_error_and_not_there(
    lost: str, lm: SteeredHFLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Any = {"source": toys(), "limit": 3, "output": tmp_path / "out"}
    save = EvaluationTracker.save_results_samples

    def cut_short(self: EvaluationTracker, **kwargs: Any) -> None:
        if lost != "all samples":
            save(self, **kwargs)
        for path in Path(self.output_path).rglob(f"{lost}_*"):
            path.write_bytes(path.read_bytes()[:-20])

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTracker, "save_results_samples", cut_short)
        with pytest.raises(FileError, match=r"out/baseline: lm-eval's output files cannot be written .* MiB are free"):
            evaluate(lm, VARIANTS[:1], ["toy_choice"], **asked)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    leftover = tmp_path / "out" / ".baseline.abcdefgh.aft-tmp-folder" / "model"
    leftover.mkdir(parents=True)
    (leftover / "results_2026.json").write_text('{"half')  # of a process that was killed
    evaluate(lm, VARIANTS[:2], ["toy_choice"], **asked)
    assert [len(run.samples["toy_choice"]) for run in read_runs(tmp_path / "out")] == [3, 3]
