from __future__ import annotations

from report_cases import run, sample

from aft_harness.publish.report import samples as module
from aft_harness.publish.report.samples import LONGEST, changed_documents


def test_gained_and_lost_documents_carry_texts_and_loglikelihoods() -> None:
    before = [sample(0, [-1.0, -2.0], 1), sample(1, [-1.0, -2.0], 0), sample(2, [-3.0, -2.0], 1)]
    after = [sample(0, [-2.5, -1.5], 1), sample(1, [-4.0, -3.0], 0), sample(2, [-3.5, -2.5], 1)]
    (found,) = changed_documents([[run({"a": before}), run({"a": after}, "s", strength=0.5)]])
    assert (found["gained"], found["lost"], found["metric"], found["strength"]) == (1, 1, "acc", 0.5)
    gained, lost = found["documents"]
    assert (gained["id"], gained["gained"], lost["id"], lost["gained"]) == (0, True, 1, False)
    assert gained["prompt"] == "Question 0?" and (gained["before"], gained["after"]) == (0.0, 1.0)
    assert gained["choices"] == [
        {"text": " choice 0", "right": False, "before": -1.0, "after": -2.5},
        {"text": " choice 1", "right": True, "before": -2.0, "after": -1.5},
    ]


def test_counts_are_those_of_the_table() -> None:
    from aft_harness.results.runs import rows

    before = [sample(place, [-1.0, -2.0], place % 2) for place in range(20)]
    after = [sample(place, [-1.0, -2.0 + (place % 3)], place % 2) for place in range(20)]
    runs = [run({"a": before}), run({"a": after}, "s")]
    (row,), (found,) = rows(runs), changed_documents([runs])
    assert (found["gained"], found["lost"]) == (row["gained"], row["lost"]) and row["gained"] and row["lost"]


def test_less_may_be_better_and_large_changes_come_first() -> None:
    def line(place: int, loss: float) -> dict[str, object]:
        text = {"arguments": {"gen_args_0": {"arg_0": f"text {place}"}}, "target": f"text {place}"}
        return sample(place, [], 0, metrics=["bits"], bits=loss, filtered_resps=[str(-loss)], **text)

    before = [line(place, 1.0) for place in range(3)]
    after = [line(0, 0.9), line(1, 0.5), line(2, 1.2)]
    (found,) = changed_documents([[run({"p": before}), run({"p": after}, "s")]], {"bits"})
    assert [(each["id"], each["gained"]) for each in found["documents"]] == [(1, True), (0, True), (2, False)]
    assert found["documents"][0]["choices"] == [
        {"text": "the whole text", "right": False, "before": -1.0, "after": -0.5}
    ]


def test_written_texts_stand_beside_each_other() -> None:
    def line(text: str, right: float) -> dict[str, object]:
        asked = {"gen_args_0": {"arg_0": "How many?", "arg_1": {"until": ["\n"]}}}
        return sample(
            *(0, [], 0), arguments=asked, filtered_resps=[text], metrics=["exact_match"], exact_match=right, target="7"
        )

    (found,) = changed_documents([[run({"g": [line("6", 0.0)]}), run({"g": [line("7", 1.0)]}, "s")]])
    (document,) = found["documents"]
    assert (document["prompt"], document["target"], document["texts"]) == ("How many?", "7", ["6", "7"])
    assert "choices" not in document


def test_contexts_that_differ_are_part_of_the_choices() -> None:
    asked = {f"gen_args_{each}": {"arg_0": f"The {each}", "arg_1": " fell."} for each in ("cat", "dog")}
    before = sample(0, [-1.0, -2.0], 1, arguments=asked)
    after = sample(0, [-2.0, -1.0], 1, arguments=asked)
    (found,) = changed_documents([[run({"w": [before]}), run({"w": [after]}, "s")]])
    (document,) = found["documents"]
    assert document["prompt"] == "" and [each["text"] for each in document["choices"]] == [
        "The cat fell.",
        "The dog fell.",
    ]
    assert [each["right"] for each in document["choices"]] == [False, True]


def test_very_many_documents_and_long_texts_are_cut(monkeypatch: object) -> None:
    count = module.MOST + 10
    long = {"gen_args_0": {"arg_0": "x" * (LONGEST + 9) + "end", "arg_1": " y"}}
    before = [sample(place, [-1.0], 0, acc=0.0, arguments=long) for place in range(count)]
    after = [sample(place, [-1.0], 0, acc=1.0, arguments=long) for place in range(count)]
    (found,) = changed_documents([[run({"a": before}), run({"a": after}, "s")]])
    assert (found["gained"], len(found["documents"])) == (count, module.MOST)
    prompt = found["documents"][0]["prompt"]
    assert prompt.startswith("… ") and prompt.endswith("end") and len(prompt) == LONGEST + 2


def test_a_score_that_is_no_number_is_not_shown_as_one() -> None:
    before, after = sample(0, [float("-inf"), -2.0], 0), sample(0, [-1.0, -2.0], 0)
    (found,) = changed_documents([[run({"a": [before]}), run({"a": [after]}, "s")]])
    assert [each["before"] for each in found["documents"][0]["choices"]] == [None, -2.0]
