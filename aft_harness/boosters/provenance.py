"""Where a booster came from, as its file records it: typed, checked when read, and open to fields of later versions.

Knows the fields of docs/booster-format.md. Knows nothing of tensors or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.errors import BoosterError


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

    loss: float
    accuracy: float | None = None
    n: int = 0
    measure: str = ""

    @property
    def rank(self) -> float:
        """Orders variants, better ones first: by loss; one that diverged comes last.

        Not by accuracy: on a hundred documents it is off by five points, while the losses of neighbouring layers or
        strengths, of the same documents, differ smoothly.
        """
        return math.inf if math.isnan(self.loss) else self.loss


class TaskRecord(_Record):
    """The documents of one task that a booster learned from."""

    task: str
    version: str = ""
    split: str = ""
    n_train: int = 0
    n_development: int = 0
    num_fewshot: int = 0
    overlapping_dropped: int = 0
    goldless_dropped: int = 0
    weight: float = 1.0


class Documents(_Record):
    """The training documents, by the hashes of their questions.

    Attributes:
        count: Number of training documents.
        hashes: Of their normalised question texts; rows with one question share a hash.
        unlisted: How many of a mixture's documents no hash is known of.
        sidecar: The hashes are in a file beside the booster, which was not found.
    """

    count: int | None = None
    hashes: tuple[str, ...] = ()
    unlisted_count: int | None = Field(default=None, alias="unlisted")
    sidecar: bool = False

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
    method: str | None = None
    objective: str | None = None
    choice_norm: str | None = None
    tasks: tuple[TaskRecord, ...] = ()
    prompting: Mapping[str, Any] | None = None
    hyperparameters: Mapping[str, Any] | None = None
    training_sha256: str | None = None
    seed: int | None = None
    dtype: str | None = None
    epoch_losses: tuple[float, ...] = ()
    measured_on: Literal["development", "training"] | None = None
    before: Score | None = None
    after: Score | None = None
    layer_sweep: Mapping[str, Score] | None = None
    raw_norm: float | None = None
    questions: tuple[str, ...] | None = None
    answered_correctly: int | None = None
    parts: tuple[Mapping[str, Any], ...] | None = None
    start: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    date: str | None = None
    licence: str | None = None
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
            provenance = cls.model_validate(dict(value or {}))
            provenance.to_json()  # unknown fields may be nested more deeply than can be written again
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "it"
            raise BoosterError(f"its provenance is malformed: {field}: {first['msg'].lower()}") from None
        except (ValueError, RecursionError) as error:
            raise BoosterError(f"its provenance is malformed: it: {str(error).lower()}") from None
        return provenance

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file, without what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def changed(self, **fields: Any) -> Provenance:
        """A copy in which some fields have other values."""
        return Provenance.of({**self.to_json(), **fields})

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
