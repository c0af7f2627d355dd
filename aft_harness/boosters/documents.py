"""When are two documents the same question: normalised text, hashed to 8 bytes.

Judged by the question's text and never by split or id, so that the same question in another split, task or answer
format counts as the same document. Knows lm-eval documents as dictionaries; knows nothing of tasks or models.

A question keeps every symbol, mark and word in its order: `2 + 3` is not `2 - 3`, `x > 3` not `x < 3`, `C++` not `C`,
`-4` not `4`, and vowel signs, accents and exponents count. What another format of the same text changes is folded:

- case, width and other compatibility forms (NFKC), and how much white space there is, also around symbols;
- the style of quotation marks and dashes, and a pair of quotation marks around the whole text;
- `.`, `:`, `?` and `!` where white space or the text's end follows, and every `,` and `;`, but for a mark between two
  digits (`1.5`, `1, 2`, `3 : 4`) and a factorial (`5!`, `n!`);
- a dash between spaces before a word of two letters or more, which separates as a colon does and subtracts nothing;
- invisible characters of formatting.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

QUESTION_FIELDS = (
    "question",
    "question_stem",
    "ctx",
    "sentence",
    "problem",
    "goal",
    "premise",
    "query",
    "prompt",
    "input",
    "text",
)
"""Fields that hold a document's question in the datasets of lm-eval, in the order in which they are tried."""

DISTINCT = 0.9
"""A field is a question only if so many of a task's documents differ in it: COPA's `question` is one of two words."""

NORMALISATION = 2
"""Which rules of normalisation `text_hash` follows, as booster files record it; 1 are those of `words`."""


def text_hash(text: str) -> str:
    """16 hex digits that are the same for texts of one question.

    The first 8 bytes of the SHA-256 of the normalised text after `2` and NUL: no hash of earlier rules can be equal.
    """
    return _digest(f"{NORMALISATION}\0{normalised(text)}")


def words_hash(text: str) -> str:
    """The hash of a text by the earlier rules, which boosters recorded that say no `normalisation`."""
    return _digest(words(text))


def possible_hashes(document: Mapping[str, Any], text: str) -> set[str]:
    """Every hash that a document could have been recorded under: whatever field was chosen, by any rules."""
    texts = [text, *(document.get(field) for field in QUESTION_FIELDS)]
    candidates = {candidate for candidate in texts if isinstance(candidate, str) and candidate.strip()}
    return {made(candidate) for candidate in candidates for made in (text_hash, words_hash)}


def normalised(text: str) -> str:
    """Text without what formatting changes; the module's docstring says what that is."""
    folded = _compatible(text)
    if len(folded) > 2 and folded[0] == folded[-1] == '"' and '"' not in folded[1:-1]:
        folded = folded[1:-1].strip()
    marked = _MARKS.sub(_kept, _AFTER_A_WORD.sub("", _SPACE_BEFORE.sub("", folded)))
    marked = _SPACED_DASH.sub(" ", marked)
    return " ".join(marked.translate(_APART).split()) or folded


def words(text: str) -> str:
    """The words of a text alone, without symbols and most marks.

    Two questions may share it. It says nothing of what is the same question; it stays as it is because the documents'
    order and the hashes in earlier boosters are made of it.
    """
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def question_field(documents: Sequence[Mapping[str, Any]], reading: Callable[[str], str] = normalised) -> str | None:
    """The field that identifies the documents of one task, or None when only their whole text does.

    Args:
        documents: All of the task.
        reading: What of a text counts.
    """
    for field in QUESTION_FIELDS:
        texts = [document.get(field) for document in documents]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            continue
        if len({reading(str(text)) for text in texts}) >= DISTINCT * len(texts):
            return field
    return None


def _digest(text: str) -> str:
    # JSON can hold halves of surrogate pairs, which UTF-8 cannot.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _Characters(dict[int, str]):
    """What becomes of a character, for `str.translate`: found out once for each."""

    def __init__(self, found_out: Callable[[str], str]) -> None:
        self._found_out = found_out

    def __missing__(self, code: int) -> str:
        self[code] = self._found_out(chr(code))
        return self[code]


_SAME = {
    **dict.fromkeys("“”„‟«»〝〞", '"'),
    **dict.fromkeys("‘’‚‛‹›`´ʼ′", "'"),  # noqa: RUF001
    **dict.fromkeys("。।॥۔", "."),  # noqa: RUF001
    **dict.fromkeys("、،", ","),
    **dict.fromkeys("؟⸮", "?"),
    **dict.fromkeys("¿¡", ""),
    "؛": ";",
    "−": "-",  # noqa: RUF001
}
"""Characters that NFKC tells apart and a reader of questions does not."""

_JOINERS = "\u200c\u200d"
"""Of invisible characters, those that change how a word of some scripts is read."""


def _before_folding(character: str) -> str:
    """Keeps what NFKC would lose: `x²` is not `x2`, and `2½` not `21/2`."""
    if character in "´′":  # noqa: RUF001 (NFKC takes them for a space with an accent)
        return "'"
    form = unicodedata.decomposition(character)
    if form.startswith("<super>"):
        return f"^{character}"
    if form.startswith("<sub>"):
        return f"_{character}"
    return f" {character}" if form.startswith("<fraction>") else character


def _after_folding(character: str) -> str:
    """One character for those that look alike, and none for what nobody sees."""
    if character in _SAME:
        return _SAME[character]
    category = unicodedata.category(character)
    if category == "Pd":
        return "-"
    if category == "Cc":
        return " "
    invisible = category == "Cf" and character not in _JOINERS
    return "" if invisible or "\ufe00" <= character <= "\ufe0f" else character


def _apart(character: str) -> str:
    """Sets symbols apart from words, so that white space around them is the same as none."""
    word = character.isspace() or character in _JOINERS or unicodedata.category(character)[0] in "LMN"
    return character if word else f" {character} "


_BEFORE, _AFTER, _APART = _Characters(_before_folding), _Characters(_after_folding), _Characters(_apart)


def _compatible(text: str) -> str:
    """Text in one case, one width, one style of quotation marks and dashes, and with single spaces."""
    folded = unicodedata.normalize("NFKC", text.translate(_BEFORE)).casefold()
    folded = " ".join(unicodedata.normalize("NFKC", folded).translate(_AFTER).split())
    return _QUOTED.sub(r'"\1"', folded)


_QUOTED = re.compile(r"(?<![\w'])'([^']+)'(?![\w'])")
_SPACE_BEFORE = re.compile(r" (?=[.,;:!?]+(?: |$))")
_AFTER_A_WORD = re.compile(r"(?<=[^\W\d_]{2})[.,;:!?]+(?= |$)")  # most marks by far: `_kept` would drop them, slowly
_MARKS = re.compile(r"[.,;:!?]+")
_SPACED_DASH = re.compile(r"(?<= )-+ (?=[^\W\d_]{2})")


def _kept(match: re.Match[str]) -> str:
    """Which of some marks in a row mean something where they stand, see the module's docstring."""
    marks, text = match[0], match.string
    before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
    if len(marks) == 1 and marks in ".,:;" and before[-1:].isdigit() and after.lstrip()[:1].isdigit():
        return marks
    if set(marks) <= {",", ";"}:
        return " "
    if after and after[0] not in ' "':
        return marks
    alone = before[-1:].isalpha() and not before[:-1].isalnum()
    if marks[0] == "!" and (alone or before[-1:].isdigit() or before[-1:] in (")", "]")):
        return marks[: len(marks) - len(marks.lstrip("!"))]
    return " "
