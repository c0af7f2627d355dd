"""Where a booster came from, as its file records it: typed, checked when read, and open to fields of later versions.

What was read once can be shown, written again, mixed and recorded with results: types are strict, numbers finite and of
sizes that tables hold, texts bounded, and fields that are not known plain JSON of bounded depth. Knows the fields of
docs/booster-format.md. Knows nothing of tensors or files.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from aft_harness.boosters.documents import NORMALISATION
from aft_harness.boosters.model_identity import ModelIdentity, Name
from aft_harness.boosters.vocabulary import ChoiceNorm
from aft_harness.errors import BoosterError

DEPTH = 128
"""Lists and objects inside each other, at most; some forty mixtures of mixtures. Writers of JSON give up beyond 200."""

INHERITED_DEPTH, INHERITED_SIZE = DEPTH - 16, 2**20
"""What of a provenance others may repeat: so deep, and so many characters of JSON."""

LARGEST = 2**63 - 1
"""Of whole numbers, in either direction: what a table's column holds."""


def _dated(text: str) -> str:
    datetime.datetime.fromisoformat(text)
    return text


def _unless_finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Number = Annotated[float, Field(strict=True)]
Date = Annotated[Name, AfterValidator(_dated)]
Hash = Annotated[str, StringConstraints(strict=True, pattern="^[0-9a-f]{16}$")]
LayerKey = Annotated[str, StringConstraints(strict=True, pattern="^[0-9]{1,5}$")]
Loss = Annotated[
    Number,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(_unless_finite, when_used="json"),
]
"""A loss; JSON, which has no NaN, holds null where it diverged."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Score(_Record):
    """How a model does on a set of examples.

    Attributes:
        loss: Mean loss; what it is the loss of, `measure` says.
        accuracy: Fraction of examples with choices whose likeliest choice is right; None without such examples.
        n: Number of examples.
        measure: `training objective`, or `ranking loss` (cross-entropy of the softmax over the choices' loglikelihoods
            at temperature 1; of a target text, per token). Scores of different measures cannot be compared.
    """

    model_config = ConfigDict(allow_inf_nan=True)

    loss: Loss
    accuracy: Annotated[Number, Field(ge=0, le=1)] | None = None
    n: Count = 0
    measure: Name = ""

    @property
    def rank(self) -> float:
        """Orders variants, better ones first: by loss; one that diverged comes last.

        Not by accuracy: on a hundred documents it is off by five points, while the losses of neighbouring layers or
        strengths, of the same documents, differ smoothly.
        """
        return math.inf if math.isnan(self.loss) else self.loss


class TaskRecord(_Record):
    """The documents of one task that a booster learned from."""

    task: Name
    version: Name = ""
    split: Name = ""
    n_train: Count = 0
    n_development: Count = 0
    n_held_out: Count | None = None
    num_fewshot: Count = 0
    overlapping_dropped: Count = 0
    goldless_dropped: Count = 0
    weight: Number = 1.0
    target_field: Name | None = None


class PartRecord(_Record):
    """A booster that another was made from: by mixing, or because training started from it.

    Attributes:
        booster_sha256: Its identity.
        strength: At which it was mixed.
        provenance: Its own, without its documents, which are among those of the whole.
    """

    booster_sha256: Name = ""
    strength: Number | None = None
    provenance: Mapping[str, Any] | None = None


class ImportRecord(_Record):
    """The file of another tool that a booster was made from.

    Attributes:
        format: What it was, such as `llama.cpp control vector`.
        sha256: Of its bytes; of an adapter's folder, of those of its weights.
    """

    format: Name = ""
    sha256: Name = ""


class Documents(_Record):
    """The training documents, by the hashes of their questions.

    Attributes:
        count: Number of training documents.
        normalisation: By which rules the hashes were made, see `documents.NORMALISATION`; None in earlier files, whose
            rules were 1. Of hashes by several rules it is the earliest.
        hashes: Of their normalised question texts; rows with one question share a hash.
        unlisted: How many of a mixture's documents no hash is known of.
        sidecar: The hashes are in a file beside the booster, which was not found.
        sidecar_sha256: Digest of these hashes, see `file_format`; None in earlier files.
    """

    count: Count | None = None
    normalisation: Count | None = None
    hashes: tuple[Hash, ...] = ()
    unlisted_count: Count | None = Field(default=None, alias="unlisted")
    sidecar: Annotated[bool, Field(strict=True)] = False
    sidecar_sha256: Name | None = None

    @model_validator(mode="after")
    def _counts_what_is_elsewhere(self) -> Documents:
        if self.sidecar and self.count is None:
            raise ValueError("a list in a separate file needs a count")
        return self

    @classmethod
    def learned(cls, hashes: Iterable[str]) -> Documents:
        """The record of training documents by the hash of each, which `text_hash` made."""
        listed = list(hashes)
        return cls(count=len(listed), normalisation=NORMALISATION, hashes=tuple(sorted(set(listed))))

    @classmethod
    def union(cls, parts: Iterable[Documents | None]) -> Documents:
        """The record of what boosters learned from that become one; None is one that learned from no documents."""
        known = [part for part in parts if part is not None]
        hashes = sorted(frozenset[str]().union(*(part.hashes for part in known)))
        unlisted = sum(part.unlisted for part in known)
        rules = [part.normalisation or 1 for part in known if part.hashes or part.unlisted]
        fields = {"count": len(hashes) + unlisted, "unlisted": unlisted, "hashes": hashes}
        return cls.model_validate(fields | ({"normalisation": min(rules)} if rules else {}))

    @property
    def unlisted(self) -> int:
        """How many training documents are not among `hashes`."""
        if self.count is None:
            return 0
        if self.sidecar:
            return self.count
        if self.unlisted_count is not None:
            return self.unlisted_count
        # Rows with one question share a hash, so fewer hashes than documents are nothing unless none is there.
        return 0 if self.hashes else self.count


class Provenance(_Record):
    """Where a booster came from; every field may be missing.

    The fields are those of the `provenance` object in docs/booster-format.md.
    """

    base_model: ModelIdentity | None = None
    method: Name | None = None
    objective: Name | None = None
    choice_norm: ChoiceNorm | None = None
    tasks: tuple[TaskRecord, ...] = ()
    prompting: Mapping[str, Any] | None = None
    hyperparameters: Mapping[str, Any] | None = None
    training_sha256: Name | None = None
    seed: Annotated[int, Field(strict=True, ge=-LARGEST, le=LARGEST)] | None = None
    dtype: Name | None = None
    epoch_losses: tuple[Number, ...] = ()
    measured_on: Literal["development", "training"] | None = None
    before: Score | None = None
    after: Score | None = None
    layer_sweep: Mapping[LayerKey, Score] | None = None
    raw_norm: Number | None = None
    questions: tuple[str, ...] | None = None
    answered_correctly: Count | None = None
    parts: tuple[PartRecord, ...] | None = None
    start: PartRecord | None = None
    imported: ImportRecord | None = None
    versions: Mapping[str, str] | None = None
    date: Date | None = None
    licence: Name | None = None
    documents: Documents | None = None

    @classmethod
    def of(cls, value: Provenance | Mapping[str, Any] | None) -> Provenance:
        """Reads what a file or a caller says.

        Raises:
            BoosterError: A field has a value that it cannot have; one line names it.
        """
        if isinstance(value, Provenance):
            return value
        try:
            fields = dict(value or {})
            _check_plain(fields)
            provenance = cls.model_validate(fields)
            provenance.to_json()  # a caller may have put in what JSON has not
        except BoosterError:
            raise
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "as a whole"
            raise BoosterError(f"malformed provenance: {field}: {first['msg'].lower()}") from None
        except (ValueError, TypeError) as error:
            raise BoosterError(f"malformed provenance: {str(error).lower()}") from None
        return provenance

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file, without what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def changed(self, **fields: Any) -> Provenance:
        """A copy in which some fields have other values."""
        return Provenance.of({**self.to_json(), **fields})

    def inherited(self) -> dict[str, Any]:
        """What a booster that is made from this one records of it: all but the documents, which are among its own.

        Of a history that is too long to be repeated again, only how this one was made.
        """
        recorded = self.to_json()
        recorded.pop("documents", None)
        if _depth(recorded) <= INHERITED_DEPTH and len(json.dumps(recorded)) <= INHERITED_SIZE:
            return recorded
        return {key: recorded[key] for key in ("method", "objective", "training_sha256", "seed") if key in recorded}

    @property
    def trained_on(self) -> list[str]:
        """Names of the tasks that were learned from."""
        return [record.task for record in self.tasks]

    @property
    def trained_n(self) -> int:
        """Number of documents that were learned from."""
        return sum(record.n_train for record in self.tasks)

    @property
    def hashes(self) -> frozenset[str]:
        """The training documents that are listed."""
        return frozenset(self.documents.hashes) if self.documents else frozenset()

    @property
    def unlisted(self) -> int:
        """How many training documents are not listed: the sidecar file is missing, or nothing was recorded."""
        return self.documents.unlisted if self.documents else 0


def _check_plain(value: Any) -> None:
    """Refuses what could not be written again or would break whoever shows it, wherever in a JSON value.

    Raises:
        BoosterError: With the field.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        if wrong := _wrong(item, len(path)):
            # Of a field that is nested very deep, where it begins.
            raise BoosterError(f"malformed provenance: {'.'.join(path[:8]) or 'as a whole'}: {wrong}")
        if isinstance(item, Mapping):
            waiting += [((*path, str(key)), key) for key in item]
            waiting += [((*path, str(key)), part) for key, part in item.items()]
        elif isinstance(item, list | tuple):
            waiting += [((*path, str(index)), part) for index, part in enumerate(item)]


def _depth(value: Any) -> int:
    """How many lists and objects stand inside each other, at most."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)


def _wrong(item: Any, depth: int) -> str | None:
    if depth > DEPTH:
        return f"is nested more than {DEPTH} levels deep"
    if isinstance(item, str) and not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
        return "contains an unpaired surrogate, which is not valid text"
    if isinstance(item, int) and abs(item) > LARGEST:
        return "is a whole number of more than 64 bits"
    return "is not a finite number" if isinstance(item, float) and not math.isfinite(item) else None
