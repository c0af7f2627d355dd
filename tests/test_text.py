from __future__ import annotations

import pytest

from aft_harness.errors import LONGEST, BoosterError
from aft_harness.text import between, printable, reason, shared_start

HARMFUL = ["\n", "\r", "\t", "\x00", "\x1b[2J", "\x7f", "\x9b", "\u2028", "\u202e", "\u200b", "\ud800", "\ue000"]


@pytest.mark.parametrize("harmful", HARMFUL, ids=ascii)
def test_text_is_one_line_that_no_terminal_obeys(harmful: str) -> None:
    shown = printable(f" aft{harmful}sha256  forged\n")
    assert shown.isprintable() and shown.startswith("aft ") and shown.endswith("sha256  forged")
    assert str(BoosterError(f"aft{harmful}sha256")).isprintable()
    shown.encode()


def test_other_text_stays_as_it_is() -> None:
    for text in ("plain", "caf\u00e9 \u2260 \u0915\u093f \U0001f600", "a  b", 5, None):
        assert printable(text) == str(text)


def test_a_message_has_a_length() -> None:
    message = str(BoosterError(f"a.safetensors: holds {'x' * 10**6}; give another file"))
    assert message.startswith("a.safetensors: holds xxx") and message.endswith("xxx; give another file")
    assert len(message) <= LONGEST + 5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no such\n repository"), "no such repository"),
        (ValueError("First. Second."), "First. Second."),
    ],
)
def test_what_an_error_says(error: Exception, expected: str) -> None:
    assert reason(error) == expected


@pytest.mark.parametrize(
    ("texts", "shared"),
    [(("abc", "abd"), "ab"), (("ab", "abc"), "ab"), (("a", "b"), ""), (("same", "same"), "same"), (("", "a"), "")],
)
def test_what_texts_begin_with_alike(texts: tuple[str, ...], shared: str) -> None:
    assert shared_start(*texts) == shared_start(*texts[::-1]) == shared_start(*texts, texts[0]) == shared


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "Before <a>\nold\n<b> after <b>\n"
    assert between(page, "<a>", "<b>", "new\nlines") == "Before <a>\nnew\nlines\n<b> after <b>\n"
    assert between(between(page, "<a>", "<b>", "new"), "<a>", "<b>", "old") == page
