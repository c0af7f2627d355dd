"""How to train: every setting of a training, and the named recipes.

Knows names and numbers only, so that plans and the command line can show them without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from aft_harness.boosters.layers import Layers
from aft_harness.boosters.vocabulary import Activation, InputNorm, Kind
from aft_harness.boosters.vocabulary import ChoiceNorm as ChoiceNorm
from aft_harness.errors import TrainingError

Objective = Literal["answer", "choice", "both"]
"""`answer`: cross-entropy of the right answer's tokens, per token. `choice`: of the softmax over the choices'
loglikelihoods. `both`: their sum."""

RateUnit = Literal["absolute", "residual"]
"""Of the learning rate: `residual` counts deltas in the size of the layer's residual stream, shared by all layers."""

Schedule = Literal["constant", "linear"]
"""Of the learning rate; `linear` decays to zero over the whole training."""


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are the default recipe, whose reasons stand in docs/log.md.

    Attributes:
        layers: Decoder layers that get an injection: the grammar of `boosters.layers.Layers`, an index or a list.
        kind: Kind of injection.
        rank: Width of a contextual injection.
        activation: Its activation.
        input_norm: What it makes of the hidden state first.
        objective: None is what `objective_of` says.
        choice_norm: How choices are ranked.
        temperature: Of the softmax over choices: what their loglikelihoods are divided by in training. None measures
            it: the typical distance between right and wrong choices of the unchanged model.
        epochs: Passes over the training examples.
        lr: Learning rate of Adam.
        rate_unit: What a rate of 1 is.
        schedule: How the rate changes.
        batch_size: Examples per optimiser step.
        seed: Seed of the order of examples.
        split_seed: Seed that separated development from training documents; recorded only.
    """

    layers: Layers | str | int | Sequence[int] = "all"
    kind: Kind = "static"
    rank: int = 8
    activation: Activation = "gelu"
    input_norm: InputNorm = "rms"
    objective: Objective | None = None
    choice_norm: ChoiceNorm = "none"
    temperature: float | None = None
    epochs: int = 3
    lr: float = 0.05
    rate_unit: RateUnit = "residual"
    schedule: Schedule = "linear"
    batch_size: int = 8
    seed: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot train."""
        object.__setattr__(self, "layers", Layers.of(self.layers))
        for name in ("epochs", "batch_size", "rank"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} {getattr(self, name)} must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"learning rate {self.lr} must be a positive number")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise TrainingError(f"temperature {self.temperature} must be a positive number")
        for name, values in _NAMED.items():
            if (value := getattr(self, name)) not in values:
                raise TrainingError(f"{name} {value!r} is not one of {', '.join(map(str, values))}")

    def layer_indices(self, count: int) -> tuple[int, ...]:
        """The layers to train of a model that has `count` of them, ascending.

        Raises:
            ModelError: A layer out of range.
        """
        return Layers.of(self.layers).resolve(count)


_NAMED = {
    "kind": get_args(Kind),
    "activation": get_args(Activation),
    "input_norm": get_args(InputNorm),
    "objective": (None, *get_args(Objective)),
    "choice_norm": get_args(ChoiceNorm),
    "rate_unit": get_args(RateUnit),
    "schedule": get_args(Schedule),
}


def objective_of(kind: Literal["choice", "text"], asked: Objective | None) -> Objective:
    """What is minimised on a task of a kind: `answer` where there are no choices, else what is asked for.

    Where nothing is, `both` rather than `choice`: as many right, and plain text suffers less (docs/log.md).
    """
    return "answer" if kind == "text" else asked or "both"


RECIPES = {
    "default": Settings(),
    "original": Settings(
        layers="middle",
        objective="answer",
        temperature=1.0,
        epochs=5,
        lr=1e-2,
        rate_unit="absolute",
        schedule="constant",
        batch_size=4,
    ),
}
"""`original` is as Activation Fine-Tuning was first published."""
