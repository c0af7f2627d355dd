"""How to train: every setting of a training, and the named recipes.

Knows names and numbers only, so that plans and the command line can show them without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aft_harness.boosters.layers import Layers
from aft_harness.boosters.vocabulary import Activation, InputNorm, Kind
from aft_harness.boosters.vocabulary import ChoiceNorm as ChoiceNorm
from aft_harness.errors import TrainingError

Objective = Literal["answer", "choice", "both", "preference", "rejection", "reward"]
"""`answer`: cross-entropy of the correct answer's tokens, per token. `choice`: cross-entropy of the softmax over the
choices' loglikelihoods. `both`: their sum. `preference`: for pairs, a bidirectional preference loss. `rejection`:
cross-entropy of those of the model's own texts that the task finds right. `reward`: policy gradient on its texts."""

OWN_TEXTS: tuple[Objective, ...] = ("rejection", "reward")
"""Objectives on texts that the model writes for documents of generation tasks."""

RateUnit = Literal["absolute", "residual"]
"""Unit of the learning rate: `residual` measures deltas relative to the norm of the layer's residual stream, and
divides the rate among all trained layers."""

Schedule = Literal["constant", "linear"]
"""Learning-rate schedule: `linear` decays to zero over the whole training."""


@dataclass(frozen=True)
class Settings:
    """Training settings. The defaults are the default recipe; docs/log.md explains why.

    Attributes:
        layers: Decoder layers that get an injection: an index, a list, or text such as `all`, `8,16`, `4-8` or `1-`.
        kind: Kind of injection.
        rank: Width of a contextual injection.
        activation: Activation function of a contextual injection.
        input_norm: How a contextual injection normalises the hidden state first.
        objective: The loss to minimise; None means `both` for tasks with choices, `preference` for pairs with a
            rejected text, and `answer` for others.
        choice_norm: How the loglikelihoods of choices are normalised for their length.
        temperature: Temperature of the softmax over the choices in training. None measures it: the typical margin
            between correct and incorrect choices of the unchanged model. Of the objective `preference` it is 1 / beta,
            and None means 10, as published. Of `rejection` it is the temperature at which texts are sampled, and None
            means 1.
        epochs: Passes over the training examples. Of `rejection` and `reward` texts are sampled anew in each.
        lr: Adam's learning rate.
        rate_unit: Unit of the learning rate.
        schedule: Learning-rate schedule.
        batch_size: Examples per optimiser step.
        keep: Weight of the term that holds the model to itself on plain text: KL(unsteered || steered) in nats a token.
        seed: Seed of the training order.
        split_seed: Seed of the split into training and development documents; for the record only.
        samples: Texts sampled for each document, of `rejection` and `reward`.
        kl: Weight of KL(steered || unsteered) of a text in its reward, of `reward`.
        reward: What texts are worth, of `rejection` and `reward`: `METRIC` or `METRIC,FILTER` of the task, or
            `module:function`; None takes the task's first metric and filter.
    """

    layers: Layers | str | int | Sequence[int] = "1-"
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
    keep: float = 3.0
    seed: int = 0
    split_seed: int = 0
    samples: int = 8
    kl: float = 0.01
    reward: str | None = None

    def __post_init__(self) -> None:
        """Refuses values that cannot train."""
        object.__setattr__(self, "layers", Layers.of(self.layers))
        for name in ("epochs", "batch_size", "rank"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} {getattr(self, name)} must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"learning rate {self.lr} must be a positive number")
        for name in ("keep", "kl"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise TrainingError(f"{name} {getattr(self, name)} must be zero or a positive number")
        if self.samples < 2:
            raise TrainingError(f"samples {self.samples} must be at least 2: a text is compared with the others")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise TrainingError(f"temperature {self.temperature} must be a positive number")
        for name, values in _NAMED.items():
            if (value := getattr(self, name)) not in values:
                raise TrainingError(f"{name} {value!r} is not one of {', '.join(map(str, values))}")

        if self.reward is not None and not self.on_own_texts:
            raise TrainingError(f"reward {self.reward} needs objective {' or '.join(OWN_TEXTS)}")
        if self.objective == "reward" and self.temperature not in (None, 1.0):
            raise TrainingError(f"objective reward samples at temperature 1, not {self.temperature:g}; leave it out")

    @property
    def on_own_texts(self) -> bool:
        """Whether the model learns from texts that it writes itself."""
        return self.objective in OWN_TEXTS

    def recorded(self) -> dict[str, Any]:
        """The settings by name, without those that the objective has no use for."""
        found = asdict(self)
        return found if self.on_own_texts else {name: found[name] for name in found if name not in _OF_OWN_TEXTS}

    def layer_indices(self, count: int) -> tuple[int, ...]:
        """The layers to train in a model with `count` layers, ascending.

        Raises:
            ModelError: A layer out of range.
        """
        return Layers.of(self.layers).resolve(count)


_OF_OWN_TEXTS = ("samples", "kl", "reward")

_NAMED = {
    "kind": get_args(Kind),
    "activation": get_args(Activation),
    "input_norm": get_args(InputNorm),
    "objective": (None, *get_args(Objective)),
    "choice_norm": get_args(ChoiceNorm),
    "rate_unit": get_args(RateUnit),
    "schedule": get_args(Schedule),
}


PAIR_OBJECTIVE: Objective = "preference"
"""Of pairs with a rejected text, where nothing is asked for; docs/pairs.md has what it was chosen by."""


def objective_of(kind: Literal["choice", "text", "pair", "judged"], asked: Objective | None) -> Objective:
    """What is minimised on examples of a kind: what is asked for, where the kind has what it needs.

    Where nothing is asked for, choices get `both` rather than `choice`: as many right, and plain text suffers less
    (docs/log.md).
    """
    if kind == "text":
        return "answer"
    if kind == "judged":
        return asked or "reward"
    if kind == "pair":
        return asked or PAIR_OBJECTIVE
    return "both" if asked in (None, "preference") else asked


RECIPES = {
    "default": Settings(),
    "original": Settings(
        layers="middle",
        keep=0.0,
        objective="answer",
        temperature=1.0,
        epochs=5,
        lr=1e-2,
        rate_unit="absolute",
        schedule="constant",
        batch_size=4,
    ),
}
"""`original` is Activation Fine-Tuning as first published."""
