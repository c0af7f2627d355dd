"""Home-made models learn nothing that is evaluated and are resumed exactly; commits stay; the page says the table."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from aft_harness.boosters.documents import text_hash
from aft_harness.errors import ModelError
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks
from aft_harness.results import table
from aft_harness.results.statistics import holm

STUDIES = Path(__file__).parents[1] / "scripts" / "studies"
TEXTS = [f"{name} had {count} apples. {count} + 1 = {count + 1}" for name in ("Ada", "Ben") for count in range(40)]


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """Imports a module of the study by its name."""
    before = set(sys.modules)
    sys.path.insert(0, str(STUDIES))
    yield importlib.import_module
    sys.path.remove(str(STUDIES))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("universal", "universality"):
            del sys.modules[name]


def row(model: str, task: str, delta: float, p_value: float, **changes: Any) -> dict[str, Any]:
    found = {
        **{"model": model, "revision": model, "parameters": 3_000_000, "booster": task, "trained_on": task},
        **{"trained_n": 100, "layers": "1-5", "strength": 1.0, "task": task, "metric": "acc", "filter": "none"},
        **{"n": 200, "baseline": 0.3, "steered": 0.3 + delta, "delta": delta, "ci_low": delta - 0.04},
        **{"ci_high": delta + 0.04, "gained": 30, "lost": 10, "p_value": p_value, "p_holm": p_value},
        **{"min_detectable": 0.06, "transfer": 0, "seed": "0", "seeds": 1, "dtype": "float32", "method": "aft"},
    }
    return found | changes


ROWS = [
    row("m-llama", "gsm8k_easy", 0.2, 1e-6),
    row("m-phi", "gsm8k_easy", 0.05, 0.004),
    row("m-gemma", "gsm8k_easy", -0.08, 0.001),
    row("m-qwen", "gsm8k_easy", 0.03, 0.03, min_detectable=0.05),  # stands alone, but not after the correction
    row("m-llama", "plain_text", 0.01, 0.01, transfer=1, trained_on="gsm8k_easy"),
    row("m-llama", "gsm8k_easy", 0.3, 1e-9, metric="acc_norm", p_holm=None),
]


def test_the_page_says_what_the_table_says(study: Any) -> None:
    page = study("universal.page")
    found = page.claims(table.to_frame([*ROWS, row("m-yi", "gsm8k_easy", 0.01, 0.7)]))
    assert [each["model"] for each in found] == ["m-gemma", "m-llama", "m-phi", "m-qwen", "m-yi"]
    expected = dict(
        zip(("m-llama", "m-phi", "m-gemma", "m-qwen", "m-yi"), holm([1e-6, 0.004, 0.001, 0.03, 0.7]), strict=True)
    )
    assert {each["model"]: each["p_holm"] for each in found} == pytest.approx(expected)
    assert page.sentences(found) == [
        "On GSM8K-Easy a booster gains on 2 of 5 architectures, by 5.0 to 20.0 points. It loses on 1 of 5 "
        "architectures: m-gemma. Of m-qwen and m-yi no change is significant; with probability 0.8 one of 5.0 to 6.0 "
        "points would have been seen."
    ]
    text = page.section(found)
    assert "over these 5 rows" in text and "one seed" in text
    assert "| GSM8K-Easy | m-phi | 3.0M | 200 | 30.0% | 35.0% | **+5.0 [+1.0, +9.0]** | 30 / 10 | 0.012 | 6.0 |" in text
    assert "| +1.0 [-3.0, +5.0] |" in text
    assert page.costs(table.to_frame(ROWS)) == [
        "Plain text changes by +0.010 bits per byte with boosters of GSM8K-Easy, from 0.30; less is better."
    ]


def test_nothing_gained_and_nothing_run_are_said_as_plainly(study: Any) -> None:
    page = study("universal.page")
    found = page.claims(table.to_frame([row("a/b", "arc_easy", 0.01, 0.6), row("a/c", "arc_easy", 0.0, 1.0)]))
    assert page.sentences(found, things="models") == [
        "On ARC-Easy a booster gains on none of 2 models. Of b and c no change is significant; with probability 0.8 "
        "one of 6.0 points would have been seen."
    ]
    assert page.section([]) == "This phase has not been run."


def test_pooled_seeds_gain_and_lose_the_mean_of_their_documents(study: Any) -> None:
    page = study("universal.page")
    seeds = [row("m", "arc_easy", 0.1, 0.5, seed=str(seed), gained=10 + seed, p_holm=None) for seed in (0, 1, 2)]
    pooled = row("m", "arc_easy", 0.1, 0.01, seed="pooled", seeds=3, gained=None, lost=None)
    (found,) = page.claims(table.to_frame([*seeds, pooled, row("m", "arc_easy", 0, 1, seed="7", dtype="bfloat16")])[:4])
    assert (found["gained"], found["lost"], found["p_holm"]) == (11, 10, 0.01)
    assert "the mean of 3 seeds" in page.section([found])


def test_a_universal_booster_is_judged_on_what_it_left_out(study: Any) -> None:
    page = study("universal.page")
    rows = [
        row("m", "arc_easy", 0.1, 0.01, trained_on="piqa+gsm8k_easy", transfer=1),
        row("m", "arc_easy", 0.1, 0.02, trained_on="arc_easy+gsm8k_easy"),
        row("m", "plain_text", 0.1, 0.03, trained_on="piqa+gsm8k_easy", transfer=1),
    ]
    (found,) = page.claims(table.to_frame(rows), left_out=True)
    assert found["p_value"] == 0.01
    assert page.sentences([found], left_out=True)[0].startswith(
        "On ARC-Easy a booster that did not learn it gains on 1"
    )


def test_a_phase_is_written_between_its_marks(study: Any, tmp_path: Path) -> None:
    page, place = study("universal.page"), tmp_path / "page.md"
    marks = f"<!-- scaling: {page.SCRIPT} -->", "<!-- end of scaling -->"
    place.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    page.write(place, "scaling", "new")
    assert place.read_text() == f"before\n{marks[0]}\nnew\n{marks[1]}\nafter\n"
    for phase in (*study("universality").PHASES, "forecasts"):  # the page itself has all of them
        page.between(
            page.PAGE.read_text(encoding="utf-8"), f"<!-- {phase}: {page.SCRIPT} -->", f"<!-- end of {phase} -->", ""
        )


def test_the_commit_of_the_first_run_is_that_of_every_run(study: Any, tmp_path: Path) -> None:
    revisions = study("universal.revisions")
    first, later = "a" * 40, "b" * 40
    models = [revisions.Named("some/model"), revisions.Named("other/model", "c" * 40), revisions.Named(str(tmp_path))]
    found = revisions.pinned(models, tmp_path, lambda name, revision: first)
    assert found == [
        {"pretrained": "some/model", "revision": first},
        {"pretrained": "other/model", "revision": "c" * 40},
        {"pretrained": str(tmp_path)},
    ]
    assert yaml.safe_load((tmp_path / revisions.LOCK).read_text()) == {"some/model": first, "other/model": "c" * 40}
    assert revisions.pinned(models, tmp_path, lambda name, revision: later) == found
    with pytest.raises(ModelError, match=f"says commit {first}, not {later}"):
        revisions.pinned([revisions.Named("some/model", later)], tmp_path)


def test_every_listed_model_has_a_commit_and_a_published_configuration(study: Any) -> None:
    revisions, prediction = study("universal.revisions"), study("universal.prediction")
    for phase in ("architectures", "scaling"):
        for model in revisions.models_of(phase):
            assert len(model.revision) == 40 and int(model.revision, 16)
            sizes = {**prediction._roadmap(model.published.get("roadmap")), **model.published}
            assert {"model_type", "hidden_size", "num_hidden_layers", "vocab_size"} <= sizes.keys()
    phi = revisions.Named.parse("microsoft/phi-2@main")
    assert phi.revision == "main" and phi.published["vocab_size"] == 51200


def test_stories_have_no_numbers_of_documents_that_are_evaluated_or_learned(study: Any) -> None:
    text = study("universal.text")
    tasks = Tasks([folder()])
    dataset = tasks.leaves(["gsm8k_easy"])["gsm8k_easy"].dataset
    world = text.World.of(tasks)
    taken = {text.place_of(row) for row in (*dataset["test"], *dataset["validation"], *list(dataset["train"])[:600])}
    assert len(taken) == 1300 and all(len(numbers) > 20 for numbers in world.numbers)
    assert not taken & {(kind, each) for kind, numbers in enumerate(world.numbers) for each in numbers}
    stories = list(itertools.islice(world.stories(random.Random(0)), 400))
    for story in stories:
        expression, result = story.rpartition(" = ")[0].split("? ")[-1], story.rpartition(" = ")[2]
        assert int(eval(expression)) == int(result)
    asked = {text_hash(row["question"]) for row in (*dataset["test"], *dataset["validation"])}
    assert not asked & {text_hash(story.rpartition("? ")[0] + "?") for story in stories}
    for line in next(world.equations(random.Random(0))).splitlines():
        expression, _, result = line.partition(" = ")
        assert int(eval(expression)) == int(result)


def test_a_question_that_comes_again_after_a_boosters_rows_is_left_out(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = study("universal.text")
    monkeypatch.setitem(text.LEARNED, "toy", 2)
    rows = [{"question": f"What is {name}?"} for name in ("a", "b", "a", "c", "d", "B")]
    task = SimpleNamespace(training_docs=lambda: rows, doc_to_text=lambda row: f"Question: {row['question']}\nAnswer:")
    tasks = SimpleNamespace(leaves=lambda names: {name: task for name in names})
    assert list(text._rest(tasks, "toy", {text_hash("what is d")})) == [rows[3]]


@pytest.mark.real_data
def test_the_text_has_no_question_of_a_test_document_nor_of_a_boosters(study: Any) -> None:
    text, tasks = study("universal.text"), Tasks([folder()])
    for name, learned in (("gsm8k_easy", 600), ("arc_easy", 300)):
        task = tasks.leaves([name])[name]
        asked = set(text._evaluated(tasks, name))
        hidden = {text_hash(row["question"]) for row in (*task.test_docs(), *list(task.training_docs())[:learned])}
        rest = [text_hash(row["question"]) for row in text._rest(tasks, name, asked)]
        every = [text_hash(row["question"]) for row in task.training_docs()]
        assert not hidden & set(rest) and rest == [each for each in every if each not in hidden] and len(rest) > 200
        fewer = [text_hash(row["question"]) for row in text._rest(tasks, name, asked | {rest[0]})]
        assert fewer == [each for each in rest if each != rest[0]]


@pytest.fixture(scope="module")
def small(study: Any) -> Any:
    """A pretraining of seconds."""
    recipe = study("universal.pretraining").Recipe(hidden=16, layers=2, head=8, vocabulary=300, length=32, batch=4)
    return replace(recipe, steps=8, warmup=2)


def test_an_interrupted_pretraining_ends_with_the_same_weights(study: Any, small: Any, tmp_path: Path) -> None:
    pretraining = study("universal.pretraining")
    tokenizer = pretraining.tokenizer_of(TEXTS, small.vocabulary, small.length)
    windows = pretraining.windows_of(TEXTS, tokenizer, small.length, 0)
    steps: list[int] = []
    record = pretraining.pretrain(
        "llama", windows, tokenizer, small, tmp_path / "whole", lambda at, _: steps.append(at)
    )
    assert steps == list(range(1, 9)) and record["tokens"] == 8 * 4 * 32 and record["held_out_loss"] > 0

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain("llama", windows, tokenizer, small, tmp_path / "cut", stop, state_every=0)
    assert not (tmp_path / "cut").exists()
    steps.clear()
    pretraining.pretrain("llama", windows, tokenizer, small, tmp_path / "cut", lambda at, _: steps.append(at))
    assert steps == [5, 6, 7, 8] and sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    whole, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    other = replace(small, steps=9)  # the state of another training is not gone on from
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain("llama", windows, tokenizer, other, tmp_path / "other", stop, state_every=0)
    pretraining.pretrain("llama", windows, tokenizer, small, tmp_path / "other", lambda at, _: steps.append(at))
    assert steps[4] == 1
    again = pretraining.pretrain("llama", windows, tokenizer, small, tmp_path / "cut", lambda *_: pytest.fail("twice"))
    assert again["kind"] == "llama"


def test_every_kind_is_an_ordinary_checkpoint_of_its_type(study: Any, small: Any, tmp_path: Path) -> None:
    pretraining = study("universal.pretraining")
    tokenizer = pretraining.tokenizer_of(TEXTS, small.vocabulary, small.length)
    windows = pretraining.windows_of(TEXTS, tokenizer, small.length, 0)
    for kind in pretraining.KINDS:
        pretraining.pretrain(kind, windows, tokenizer, replace(small, steps=1), tmp_path / kind)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        assert model.config.model_type == kind and model.dtype == torch.float32
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (kind == "gemma")
    ids = AutoTokenizer.from_pretrained(tmp_path / "phi")("Ada had 37")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:1]) == ["<s>"] and tokenizer.decode(ids[-2:]) == "37"
    assert len(tokenizer.convert_ids_to_tokens(ids[-1:])[0]) == 1  # a digit is a token of its own
    lengths = {pretraining._rate(step, small) for step in (1, 2)}
    assert lengths == {1.0} and pretraining._rate(small.steps, small) == pytest.approx(0.1)


def test_every_pass_over_the_text_has_all_windows_in_an_order_of_its_own(study: Any, small: Any) -> None:
    pretraining = study("universal.pretraining")
    rows = torch.cat([pretraining._rows(step, 10, small) for step in range(5)])  # 5 x 4 rows: two passes
    first, second = rows[:10].tolist(), rows[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_plans_take_what_the_text_does_not_have_and_can_be_cut(study: Any) -> None:
    plans = study("universal.plans")
    plan = plans.home_made({"pretrained": "somewhere"}, plans.Size())
    (easy,), (arc,) = plan.sources["gsm8k_easy"], plan.sources["arc_easy"]
    assert (easy.train_docs, arc.train_docs, plan.seeds) == ("train[0:600]", "train[0:300]", (0, 1, 2))
    cut = plans.mixtures({"pretrained": "somewhere"}, plans.Size((0,), 10, 20))
    asked = {each.task: (each.docs, each.limit) for each in cut.evaluations}
    assert asked["arc_easy"] == ("400:420", None) and asked["openbookqa"] == (None, 20) and cut.seeds == (0,)
    assert {each.limit for selections in cut.sources.values() for each in selections} == {10}
    assert len(cut.sources) == 7 and plan.models[0] == {"pretrained": "somewhere"}


def test_what_cannot_be_run_is_one_line(study: Any, tmp_path: Path) -> None:
    script = study("universality")
    where = ["--work", str(tmp_path / "w"), "--output", str(tmp_path / "o"), "--page", str(tmp_path / "p.md")]
    for arguments, message in (
        (["architectures", *where, "--model", str(tmp_path), "--seeds", "0"], f"not run: {tmp_path}; the reasons"),
        (["home-made", *where, "--kind", "bert"], "bert: expected any of llama, qwen2"),
        (["scaling", *where, "--seeds", "x"], "expected whole numbers"),
    ):
        result = CliRunner().invoke(script.main, arguments)
        assert result.exit_code and message in result.output and "Traceback" not in result.output
