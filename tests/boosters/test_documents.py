from __future__ import annotations

from aft_harness.boosters.documents import normalised, possible_hashes, question_field, text_hash


def test_formatting_does_not_make_another_document() -> None:
    assert text_hash("What  IS it?\n") == text_hash("what is it") == text_hash("\uff37hat is it!")
    assert text_hash("what is it") != text_hash("what was it")
    assert len(text_hash("x")) == 16
    assert normalised("???") == "???"  # punctuation alone still tells documents apart


def test_the_question_field_is_one_that_tells_documents_apart() -> None:
    asked = [{"question": f"why {n}", "text": "same"} for n in range(20)]
    assert question_field(asked) == "question"
    copa = [{"question": "cause", "premise": f"it fell {n}"} for n in range(20)]
    assert question_field(copa) == "premise"
    assert question_field([{"question": ["a", "list"]}]) is None
    assert question_field([]) is None


def test_a_recorded_document_is_recognised_whatever_field_was_chosen() -> None:
    document = {"question": "cause", "premise": "The vase fell."}
    recorded = text_hash(document["premise"])
    assert recorded in possible_hashes(document, "another prompt")
    assert text_hash("whole prompt") in possible_hashes(document, "Whole prompt")
    assert recorded not in possible_hashes({"premise": "The glass fell."}, "")
