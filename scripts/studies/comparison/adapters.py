"""Methods of the PEFT library, which change a model in place, trained by the loop that trains boosters.

They learn from the same packed rows in the same order. Knows PEFT, its settings, and the training floor's loop.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import peft
import torch
from comparison.exams import CELLS, learned_from, load
from comparison.fitted import BATCH_SIZE, BUDGET, EPOCHS, Fitted, Method, best
from torch import nn

from aft_harness.engine.scoring import Engine
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training import optimiser
from aft_harness.training.loop import EpochLosses, run_epoch
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Objective, Settings

RATES = {
    "LoRA r=8": (5e-4, 2e-3),
    "IA3": (1e-2, 5e-2),
    "LN tuning": (3e-3, 1e-2),
    "BEFT": (3e-3, 1e-2),
    "prompt tuning": (3e-2, 1e-1),
}
"""Learning rates that development documents choose from."""


def adapter(name: str, rates: Sequence[float], objective: Objective | None = None) -> Method:
    """A method of PEFT, at the best of some rates; for a second seed the recipe's objective is needed."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        chosen = rates
        first = CELLS / f"{name.replace(' ', '_')}-{task}-0.json"
        if seed and first.is_file():  # a rate is chosen once
            before = json.loads(first.read_text())["tried"]
            chosen = [before[best(before)]["rate"]]
        fits, tried = [], []
        for rate in chosen:
            fit, measured = _trained(name, task, seed, rate, objective)
            fits.append(fit)
            tried.append({"rate": rate, **measured})
            click.echo(f"    {tried[-1]}", err=True)
        return replace(fits[best(tried)], tried=tried)

    return fitted


class Learned(NamedTuple):
    """What a method of PEFT has made of a model.

    Attributes:
        wrapped: The model as PEFT has it; the one that was given is changed, too.
        engine: Scores requests with it.
        score: On the development examples, if there are any.
        seconds: That training took.
    """

    wrapped: Any
    engine: Engine
    score: Any
    seconds: float

    @property
    def parameters(self) -> int:
        """Numbers that were learned."""
        return sum(part.numel() for part in self.wrapped.parameters() if part.requires_grad)


def learn(
    lm: SteeredHFLM, tasks: Sequence[TaskExamples], name: str, seed: int, rate: float, objective_name: Objective | None
) -> Learned:
    """Trains a method of PEFT on the examples of some tasks; the model is changed in place.

    Args:
        lm: The model.
        tasks: Training and development examples.
        name: One of `RATES`.
        seed: Of the method's initial values and of the order of the examples.
        rate: Learning rate.
        objective_name: What is minimised; None is the recipe's.
    """
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(lm.model, _config(name))
    engine = lm.engine
    if name == "prompt tuning":
        engine = Engine(_Prefixed(wrapped), lm.engine.layers, lm.engine.device, packed=False)
    learning = [part for part in wrapped.parameters() if part.requires_grad]
    settings = Settings(epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed, lr=rate, objective=objective_name)
    adam = torch.optim.Adam(learning, lr=rate)
    examples = sum(len(task.train) for task in tasks)
    schedule = optimiser.scheduler(adam, "linear", EPOCHS * math.ceil(examples / BATCH_SIZE))
    start = time.perf_counter()

    def stop_late(progress: Any) -> None:
        if time.perf_counter() - start > BUDGET:
            raise TimeoutError

    with nullcontext() if name == "prompt tuning" else engine.differentiated():
        # Nothing is cached: what PEFT trains lies below every layer's output.
        objective = PreparedObjective(engine, tasks, settings)
        try:
            for epoch in range(1, EPOCHS + 1):
                losses = EpochLosses()
                run_epoch(objective, objective.train, settings, schedule, epoch, losses, lambda: True, stop_late)
        except TimeoutError:
            click.echo(f"    stopped after {BUDGET:.0f} s", err=True)
        seconds = time.perf_counter() - start
        score = objective.score(objective.development) if objective.development else None
    return Learned(wrapped, engine, score, seconds)


def _trained(
    name: str, task: str, seed: int, rate: float, objective_name: Objective | None
) -> tuple[Fitted, dict[str, Any]]:
    lm = load()
    found = learn(lm, [learned_from(lm, task)], name, seed, rate, objective_name)
    with tempfile.TemporaryDirectory() as scratch:
        found.wrapped.save_pretrained(scratch)
        size = sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))

    def score(requests: Sequence[Any]) -> list[float]:
        return [value for value, _ in found.engine.loglikelihoods(list(requests), 4096)[0]]

    measured = {
        "development_loss": found.score.loss,
        "development_accuracy": found.score.accuracy,
        "seconds": found.seconds,
    }
    return Fitted(score, found.parameters, size, found.seconds), measured


def _config(name: str) -> Any:
    causal = peft.TaskType.CAUSAL_LM
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if name == "LoRA r=8":
        return peft.LoraConfig(task_type=causal, r=8, lora_alpha=16, target_modules=linear)
    if name == "IA3":
        feed = ["down_proj"]
        return peft.IA3Config(task_type=causal, target_modules=["k_proj", "v_proj", *feed], feedforward_modules=feed)
    if name == "LN tuning":
        norms = ["input_layernorm", "post_attention_layernorm", "norm"]
        return peft.LNTuningConfig(task_type=causal, target_modules=norms)
    if name == "BEFT":
        return peft.BeftConfig(task_type=causal, target_modules=["v_proj"])
    return peft.PromptTuningConfig(task_type=causal, num_virtual_tokens=20)


class _Prefixed(nn.Module):
    """PEFT's prompt tuning as a model whose logits are those of the real tokens."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.inner, self.config = wrapped, wrapped.config
        self.dtype = wrapped.base_model.dtype

    def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
        logits = self.inner(input_ids=input_ids, use_cache=False).logits
        return SimpleNamespace(logits=logits[:, -input_ids.shape[1] :])
