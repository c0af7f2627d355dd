"""What is learned as the right answer, and what never is: a test for each way in which tasks say their target."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness_cases import TOYS, drawn
from lm_eval.api.task import ConfigurableTask

from aft_harness.errors import TaskError
from aft_harness.harness.examples import TaskExamples, examples_of
from aft_harness.harness.gold import TargetText
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection

CHAT = "{% for m in messages %}<{{m['role']}}>{{m['content']}}</s>{% endfor %}<assistant>"
WAY_OUT = r"; name the field that holds the answer with --target-field FIELD .*question, choices, gold, answer.*YAML"


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    tiny_tokenizer.chat_template = CHAT
    return SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)


def _toy() -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("toy_documents", Path(TOYS) / "toy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load  # type: ignore[no-any-return]


def task(change: Callable[[dict], dict] = dict, **config: Any) -> ConfigurableTask:
    """The toy task that generates text, said otherwise; `change` gives its documents other fields."""
    load = _toy()

    def documents(**options: Any) -> Any:
        return load(**options).map(change)

    common = {
        "task": "toy",
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "custom_dataset": documents,
        "doc_to_text": "{{question}} Answer:",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["."]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return ConfigurableTask(config={**common, **config})


def learned(made: Any, lm: SteeredHFLM, prompt_format: PromptFormat | None = None, **selection: Any) -> TaskExamples:
    """The examples of a task object."""
    return examples_of(TaskSelection("toy", **selection), made, lm, prompt_format)


def continuations(found: TaskExamples, lm: SteeredHFLM) -> list[str]:
    """What is learned, as the model's tokens say it."""
    return [lm.tok_decode(list(example.requests[0].continuation)) for example in found.train]


def answers(found: TaskExamples) -> dict[str, str]:
    """The learned texts by question."""
    return {example.question: example.choices[0] for example in found.train}


def with_object(doc: dict) -> dict:
    return {
        **doc,
        "answers": {"text": [doc["answer"]], "start": [3]},
        "spans": [{"text": doc["answer"]}],
        "words": [doc["answer"], "other"],
        "nested": [[doc["answer"]]],
        "number": doc["gold"] + 70,
        "empty": "",
    }


REFUSED = {
    # ifeval: a number that its scoring code never looks at
    "number": ({"doc_to_target": 0, "process_results": lambda doc, results: {"acc": 0}}, "is the same .*'0'"),
    "digit": ({"doc_to_target": "0"}, "is the same .*'0'"),
    # simple_cooccurrence_bias_gen: the name of no field
    "word": ({"doc_to_target": "all"}, "is the same for every document .'all'.*scoring code"),
    # slr_bench: a template without a variable
    "fixed list": ({"doc_to_target": "{{['ground-truth rule']}}"}, "is the same .*'ground-truth rule'"),
    "function": ({"doc_to_target": lambda doc: "yes"}, "is the same .*'yes'"),
    # realtoxicityprompts, nortruthfulqa
    "nothing": ({"doc_to_target": ""}, "is empty in every document"),
    "blank": ({"doc_to_target": " "}, "is empty in every document"),
    "empty field": ({"doc_to_target": "empty"}, "is empty in every document"),
    # squad-like
    "object": ({"doc_to_target": "answers"}, "is an object with the fields start, text|text, start.*, not a text"),
    "printed object": ({"doc_to_target": "{{answers}}"}, "prints an object with the fields .* as if it were a text"),
    "object in a text": ({"doc_to_target": "It is {{answers}}"}, "prints an object"),
    "list in a text": ({"doc_to_target": "{{question}}_{{words}}"}, "prints a list as if it were a text"),
    "generator": ({"doc_to_target": "{{words|map('upper')}}"}, "prints a value of type generator"),
    "objects": ({"doc_to_target": "spans"}, "is an object with the fields text, not a text"),
    "lists": ({"doc_to_target": "nested"}, "is a list, not a text"),
    # drop: the names of an object's fields instead of its values
    "field names": ({"doc_to_target": "{{answers|join(',')}}"}, "is the same for every document"),
    "unresolved": ({"doc_to_target": lambda doc: "{{answer}} of " + doc["question"]}, "not filled in"),
    # humaneval, mbpp_plus_instruct
    "unit tests": ({"unsafe_code": True, "doc_to_target": "assert f() == {{answer}}"}, "runs the code .* is tested by"),
    # mbpp, of documents without a solution
    "no solution": (
        {"doc_to_target": "{% if is_fewshot is defined %}{{code}}{% else %}{{answer}}{% endif %}"},
        r"lack what the answer of a few-shot example is made of \(UndefinedError: 'code' is undefined\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_answer_is_refused_with_the_way_out(kind: str, lm: SteeredHFLM) -> None:
    config, reason = REFUSED[kind]
    with pytest.raises(TaskError, match=f"task toy: .*(?:{reason}).*{WAY_OUT}") as caught:
        learned(task(with_object, **config), lm, limit=6)
    assert "\n" not in str(caught.value)
    # The way out works.
    found = learned(task(with_object, **config), lm, limit=6, target_field="answer")
    assert answers(found) == answers(learned(task(), lm, limit=6))


ACCEPTED: dict[str, tuple[dict[str, Any], Callable[[dict], str]]] = {
    "field": ({"doc_to_target": "answer"}, lambda doc: doc["answer"]),
    "template": ({"doc_to_target": "It is {{answer}}"}, lambda doc: f"It is {doc['answer']}"),
    "function": ({"doc_to_target": lambda doc: doc["answer"].upper()}, lambda doc: doc["answer"].upper()),
    "number": ({"doc_to_target": "number"}, lambda doc: str(doc["number"])),
    # longbench, triviaqa: several right answers, of which few-shot examples show the first
    "list": ({"doc_to_target": "words"}, lambda doc: doc["answer"]),
    "printed list": ({"doc_to_target": "{{words}}"}, lambda doc: doc["answer"]),
    "part of an object": ({"doc_to_target": "{{answers.text[0]}}"}, lambda doc: doc["answer"]),
    "joined list": ({"doc_to_target": "{{words|join(', ')}}"}, lambda doc: f"{doc['answer']}, other"),
    "object as JSON": ({"doc_to_target": "{{spans[0]|tojson}}"}, lambda doc: f'{{"text": "{doc["answer"]}"}}'),
    "text like an object": ({"doc_to_target": "{'a': {{number}}}"}, lambda doc: f"{{'a': {doc['number']}}}"),
    "formula": (
        {"doc_to_target": lambda doc: "$x^{{" + str(doc["number"]) + "}}$"},
        lambda doc: "$x^{{" + str(doc["number"]) + "}}$",
    ),
    "choice": ({"doc_to_target": "gold", "doc_to_choice": "choices"}, lambda doc: doc["answer"]),
    # mbpp, with a solution
    "few-shot flag": (
        {
            "unsafe_code": True,
            "doc_to_target": "{% if is_fewshot is defined %}{{answer}}[DONE]{% else %}assert {{gold}}{% endif %}",
        },
        lambda doc: f"{doc['answer']}[DONE]",
    ),
    # minerva_math
    "flag of another name": (
        {"doc_to_target": "{{gold if few_shot is undefined else answer}}"},
        lambda doc: doc["answer"],
    ),
    # mmlu_pro
    "few-shot configuration": (
        {"doc_to_target": "gold", "fewshot_config": {"doc_to_target": lambda doc: f"So it is {doc['answer']}"}},
        lambda doc: f"So it is {doc['answer']}",
    ),
    # kormedmcqa: the answer stands in the few-shot examples' text
    "empty few-shot target": ({"fewshot_config": {"doc_to_target": ""}}, lambda doc: doc["answer"]),
    # mmlu_pro's test rows; bbh: few-shot examples of their own fields
    "few-shot target of other documents": (
        {"fewshot_config": {"doc_to_target": "{{reasoning}}", "samples": [{"question": "?", "reasoning": "so"}]}},
        lambda doc: doc["answer"],
    ),
    "few-shot target without text": ({"fewshot_config": {"doc_to_target": "empty"}}, lambda doc: doc["answer"]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_the_answer_that_is_learned(kind: str, lm: SteeredHFLM) -> None:
    config, expected = ACCEPTED[kind]
    made = task(with_object, **config)
    right = {doc["question"]: expected(doc) for doc in made.dataset["train"]}
    found = answers(learned(made, lm, limit=9))
    assert len(found) == 9 and found == {question: right[question] for question in found}


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_delimiter": "\n"},
        {"doc_to_target": " {{answer}}", "target_delimiter": ""},
        {"gen_prefix": "So it is"},
        {"gen_prefix": "So it is:\n"},
        {"gen_prefix": "So: {{question}} is"},
        {"fewshot_config": {"doc_to_target": "{{answer}} indeed"}},
        {"fewshot_config": {"doc_to_target": "{{answer}} indeed", "target_delimiter": "\n"}},
        {"doc_to_target": "{{gold if few_shot is undefined else answer}}", "fewshot_config": {"flagged": True}},
    ],
    ids=str,
)
def test_prompt_and_answer_are_joined_as_lm_eval_joins_few_shot_examples(
    config: dict, chat: bool, lm: SteeredHFLM
) -> None:
    # The oracle is lm-eval: the document is shown as the only few-shot example of another one.
    fewshot = dict(config.get("fewshot_config", {}))
    flag = {"few_shot": "1"} if fewshot.pop("flagged", None) else {}
    settings = {**config, "fewshot_config": fewshot or None}
    found = learned(task(**settings), lm, PromptFormat(apply_chat_template=chat, num_fewshot=0), limit=5)
    rows = {doc["question"]: doc for doc in task().dataset["train"]}
    for example in found.train:
        samples = [{**rows[example.question], **flag}]
        oracle = task(**{**settings, "fewshot_config": {**fewshot, "sampler": "first_n", "samples": samples}})
        shown = oracle.fewshot_context(
            task().dataset["test"][0],
            num_fewshot=1,
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
            chat_template=lambda turns, **_: "".join(f"<{turn['role']}>{turn['content']}</s>" for turn in turns),
        )
        shown = shown[shown.index(example.question) :].replace("<assistant>", "")
        whole = lm.tok_decode([*example.requests[0].context, *example.requests[0].continuation])
        whole = whole[whole.index(example.question) :].replace("<assistant>", "")
        assert shown.startswith(whole) and whole.endswith(example.choices[0]), (shown, whole)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("anwser", "its documents have no field 'anwser'; they have question, choices, gold, answer, both, sentence"),
        ("gold", "the field 'gold' is a value of type int, not a text"),
        ("choices", "the field 'choices' is a list, not a text"),
        ("answers", "the field 'answers' is an object with the fields .*, not a text"),
        ("empty", "the field 'empty' is empty in every document"),
    ],
)
def test_a_field_that_is_no_text_is_refused(field: str, reason: str, lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match=f"task toy: {reason}") as caught:
        learned(task(with_object), lm, target_field=field)
    assert "\n" not in str(caught.value)


def test_a_target_that_cannot_be_built_is_one_line(lm: SteeredHFLM) -> None:
    def failing(doc: dict) -> str:  # not of the evaluated documents: lm-eval tries one of them when it loads a task
        return doc["answer"] if int(doc["question"].split()[1][:-1]) >= 24 else doc["answers"]

    with pytest.raises(TaskError, match=rf"its target cannot be built \(KeyError: 'answers'\){WAY_OUT}") as caught:
        learned(task(doc_to_target=failing), lm, limit=4)
    assert "\n" not in str(caught.value)


def test_documents_whose_field_is_empty_are_dropped_and_counted(lm: SteeredHFLM) -> None:
    def holes(doc: dict) -> dict:
        return {**doc, "text": [doc["answer"], "", None][doc["gold"]]}

    found = learned(task(holes), lm, target_field="text")
    assert (len(found.train), found.goldless) == (7, 16)  # one more is in the test split


def test_a_named_field_is_the_target_of_every_kind_of_task(lm: SteeredHFLM) -> None:
    by_task = {
        name: drawn(name, lm, target_field="sentence", limit=5) for name in ("toy_text", "toy_choice", "toy_two_right")
    }
    for found in by_task.values():
        assert found.kind == "text" and all(len(example.requests) == 1 for example in found.train)
        assert answers(found) == answers(by_task["toy_text"])
        assert found.record().target_field == "sentence"
        assert all(text.startswith(" ") for text in continuations(found, lm))
    loglikelihood = learned(task(output_type="loglikelihood", generation_kwargs=None), lm, target_field="sentence")
    assert set(answers(by_task["toy_text"]).items()) <= set(answers(loglikelihood).items())
    with pytest.raises(TaskError, match="task toy_blanks: its prompts hold the choices"):
        drawn("toy_blanks", lm, target_field="answer")


def test_choices_of_which_only_scoring_code_knows_the_right_ones_need_a_field(lm: SteeredHFLM) -> None:
    config: dict[str, Any] = {
        "output_type": "multiple_choice",
        "generation_kwargs": None,
        "doc_to_target": 0,
        "doc_to_choice": "choices",
        "process_results": lambda doc, results: {"acc": 0},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    with pytest.raises(TaskError, match=f"known to its own scoring code only.*{WAY_OUT}"):
        learned(task(**config), lm)
    assert learned(task(**config), lm, target_field="answer").kind == "text"


def test_what_is_evaluated_is_what_a_loglikelihood_task_learns(lm: SteeredHFLM) -> None:
    config = {"output_type": "loglikelihood", "generation_kwargs": None}
    found = learned(task(**config, doc_to_target="{{' ' + answer}}"), lm, limit=5)
    assert continuations(found, lm) == [example.choices[0] for example in found.train]
    with pytest.raises(TaskError, match="is the same for every document"):
        learned(task(**config, doc_to_target=" yes"), lm)


def test_few_documents_of_one_answer_are_no_constant_target(lm: SteeredHFLM) -> None:
    made = task(doc_to_target=lambda doc: "yes" if doc["gold"] < 2 else "no")
    train = list(made.dataset["train"])
    alike = [doc for doc in train if doc["gold"] == 0][:3]
    assert TargetText(made, "toy", alike, train).of(alike[0]) == "yes"


def test_provenance_of_an_unnamed_field_holds_none(lm: SteeredHFLM) -> None:
    found = drawn("toy_text", lm, limit=3)
    assert found.record().target_field is None
    assert "target_field" not in found.record().model_dump(mode="json", exclude_unset=True)
