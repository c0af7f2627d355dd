"""Which frozen model a booster was made for. Knows names and digests; reading them off a model is the engine's work."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from aft_harness.text import printable

Name = Annotated[str, StringConstraints(strict=True, max_length=4096)]
"""A text that tables and messages show."""


EMBEDDED = "SmolLM2-135M-Instruct (Q4_1, dequantised)"
"""Name of the model that comes with the demo."""


class ModelIdentity(BaseModel):
    """The identity of a frozen model, the same on every machine.

    Attributes:
        name: Hub id, or the model's own name; never a path.
        revision: Commit on the hub, or None for a local checkpoint.
        fingerprint: SHA-256 over configuration and sampled weights, independent of dtype and device; None if unknown.
        architecture: Class name, such as `LlamaForCausalLM`.
        layers: Number of decoder layers.
        hidden_size: Width of the residual stream.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Name = "unknown"
    revision: Name | None = None
    fingerprint: Name | None = None
    architecture: Name = ""
    layers: Annotated[int, Field(strict=True, ge=0, le=10**9)] = 0
    hidden_size: Annotated[int, Field(strict=True, ge=0, le=10**9)] = 0

    def differs_from(self, recorded: ModelIdentity) -> bool:
        """Whether a recorded identity is known to be of another model."""
        return None not in (recorded.fingerprint, self.fingerprint) and recorded.fingerprint != self.fingerprint

    @property
    def label(self) -> str:
        """Name and start of the fingerprint, which tell models apart in messages."""
        return printable(f"{self.name} ({(self.fingerprint or 'unknown')[:12]})")
