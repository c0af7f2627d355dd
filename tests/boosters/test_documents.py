from __future__ import annotations

import hashlib

import pytest

from aft_harness.boosters.documents import normalised, possible_hashes, question_field, text_hash, words_hash

SAME = [
    ("What  IS it?\n", "what is it"),
    ("\uff37hat is it!", "what is it"),
    ('"What is it?"', "what is it"),
    ("Number 5: which door is it?", "NUMBER 5 - WHICH DOOR IS IT"),
    ("word \u2014 word", "word - word"),
    ("he said , then ...", "He said, then"),
    ("2+3", "2  +  3"),
    ("x>3", "x > 3"),
    ("\u22124", "-4"),
    ("f(a,b)", "f(a, b)"),
    ("is it \u201cx\u201d", 'is it "x"'),
    ("is it \u2018x\u2019", 'is it "x"'),
    ("it\u2019s", "it 's"),
    ("What is 5!?", "what is 5!"),
    ("cafe\u0301", "caf\u00e9"),
    ("soft\u00adhyphen", "softhyphen"),
    ("\u4f60\u597d\u5417\uff1f", "\u4f60\u597d\u5417"),
    ("\u0915\u094d\u092f\u093e?", "\u0915\u094d\u092f\u093e\u0964"),
]
"""One question in two formats."""

DIFFERENT = [
    *[("2 + 3", f"2 {symbol} 3") for symbol in "-*/^=<>&|%\u00d7\u2264"],
    *[("x - y", other) for other in ("x + y", "x y", "x-y-", "y - x")],
    ("2 + 3", "2 3"),
    ("x > 3", "x < 3"),
    ("x >= 3", "x > 3"),
    ("x != 3", "x = 3"),
    ("!x", "x"),
    ("C++", "C"),
    ("C#", "C"),
    ("-4", "4"),
    ("\u221a4", "4"),
    ("$5", "5"),
    ("50%", "50"),
    ("1.5", "15"),
    ("1.5", "1 5"),
    (".5", "5"),
    ("1..5", "1.5"),
    ("3:4", "3 4"),
    ("5!", "5"),
    ("5!!", "5!"),
    ("n! / k!", "n / k"),
    ("5'", '5"'),
    ("f'(x)", "f(x)"),
    ("a_b", "a b"),
    ("a[1:]", "a[1]"),
    ("(x + 1) * 2", "x + 1 * 2"),
    ("print('a')", "print(a)"),
    ("x\u00b2", "x2"),
    ("10\u00b3", "103"),
    ("H\u2082O", "H2O"),
    ("2\u00bd", "21/2"),
    ("a \u2260 b", "a = b"),
    ("\u2200x", "\u2203x"),
    ("\U0001f600", "\U0001f603"),
    ("caf\u00e9", "cafe"),
    ("\u0915\u093f", "\u0915\u0947"),
    ("\u0915\u093f", "\u0915"),
    ("\u05d1\u05b8", "\u05d1\u05b7"),
    ("?", "!"),
    ("what is it", "what was it"),
]


@pytest.mark.parametrize(("text", "other"), SAME)
def test_another_format_is_the_same_question(text: str, other: str) -> None:
    assert normalised(text) == normalised(other) and text_hash(text) == text_hash(other)


@pytest.mark.parametrize(("text", "other"), DIFFERENT)
def test_symbols_and_marks_make_another_question(text: str, other: str) -> None:
    assert text_hash(text) != text_hash(other)
    wrapped = [f"What does {part} mean in this place?" for part in (text, other)]
    if text not in "?!":  # marks alone mean nothing inside of a sentence
        assert text_hash(wrapped[0]) != text_hash(wrapped[1])


def test_halves_of_surrogate_pairs_are_hashed() -> None:
    assert len({made(half) for half in ("\ud800", "\ud801") for made in (text_hash, words_hash)}) == 4


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


def test_earlier_boosters_are_recognised() -> None:
    document = {"question": "Is 2 + 3 = 5?"}
    # As the first rules made it: words alone.
    earlier = hashlib.sha256(b"is 2 3 5").hexdigest()[:16]
    assert words_hash(document["question"]) == earlier
    assert earlier in possible_hashes(document, "")
    # Since these cannot tell the two apart, a booster of that time may have learned either.
    assert earlier in possible_hashes({"question": "Is 2 - 3 = 5?"}, "")


def test_no_hash_of_today_is_one_of_earlier_rules() -> None:
    # Otherwise `2 - 3`, whose words are `2 3`, would pass for the question `2 3`.
    assert normalised("2 3") == "2 3" and text_hash("2 3") not in possible_hashes({}, "2 - 3")
    assert text_hash("2 3") != words_hash("2 3")
