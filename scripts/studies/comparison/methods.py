"""The methods of the comparison: each learns from a task's training documents and then gives loglikelihoods.

Methods that change a model in place are trained by the loop that trains boosters, on the same rows in the same order.
All that have a gradient minimise both losses of the recipe, and once, for comparison, the ranking of the choices alone.
repeng, steering-vectors and pyreft run in environments of their own, through `peers`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import peft
import torch
from comparison.exams import CELLS, asked, drawn, exam, load, passages
from torch import nn

from aft_harness.boosters.booster import Booster
from aft_harness.demo import model_folder
from aft_harness.engine.scoring import Engine
from aft_harness.training import optimiser
from aft_harness.training.answers import answers
from aft_harness.training.hidden_states import StateStore
from aft_harness.training.lesson import Lesson
from aft_harness.training.recipe import RECIPES, Objective, Settings
from aft_harness.training.train import run_epoch, train

BUDGET = 600.0
"""Seconds that a training may take on one core; one that takes longer is stopped there."""
EPOCHS, BATCH_SIZE = 3, 8
FEWER = (10, 30, 100, 300)
"""Training documents of the curve."""
PLENTY = "ours, 600 documents"
"""What a plain `aft-train` learns from, where the comparison's budget allows fewer."""
ALONE = ", choices alone"
"""Ends the names of methods that minimise `choice`, and not the recipe's `both`."""
RATES = {
    "LoRA r=8": (5e-4, 2e-3),
    "IA3": (1e-2, 5e-2),
    "LN tuning": (3e-3, 1e-2),
    "BEFT": (3e-3, 1e-2),
    "prompt tuning": (3e-2, 1e-1),
}
"""Learning rates that development documents choose from, of PEFT's methods."""
Scorer = Callable[[Sequence[Any]], list[float]]


@dataclass
class Fitted:
    """A method after its training.

    Attributes:
        score: Gives the loglikelihoods of requests.
        parameters: Numbers that were learned.
        file_bytes: Size of the file that is shared.
        seconds: Of the training that was kept.
        tried: The settings that development documents chose from, with their losses.
        shots: Few-shot examples in the prompts.
    """

    score: Scorer
    parameters: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    tried: list[dict[str, Any]] = field(default_factory=list)
    shots: int = 0


def scorer(lm: Any, booster: Any = None, strength: float = 1.0) -> Scorer:
    """Loglikelihoods by the packed engine."""
    variant = lm.steering_for(booster, strength)
    return lambda requests: [score for score, _ in lm.score_variants(list(requests), [variant])[0]]


def zero_shot(task: str, seed: int, folder: Path) -> Fitted:
    """The unchanged model."""
    return Fitted(scorer(load()))


def few_shot(task: str, seed: int, folder: Path) -> Fitted:
    """Five examples in the prompt."""
    return Fitted(scorer(load()), shots=5)


def ours(task: str, seed: int, folder: Path, **changes: Any) -> Fitted:
    """`aft-train` with its defaults, or some of them changed; no setting is chosen for the task."""
    lm = load()
    learned = drawn(lm, task, changes.pop("limit", None))
    settings = replace(RECIPES["default"], seed=seed, **changes)
    # Development documents are measured, but choose nothing: a plain `aft-train` has none.
    trained = train(lm, [replace(learned, development=[])], settings)
    path = folder / "boosters" / f"ours-{task}-{seed}-{trained.booster.sha256[:8]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.booster.save(str(path))
    booster = trained.booster
    return Fitted(scorer(lm, booster), booster.parameters, path.stat().st_size, trained.seconds)


def best(tried: Sequence[Mapping[str, Any]]) -> int:
    """The setting that was right on most development documents; of equals, the one with the lowest loss."""
    return min(range(len(tried)), key=lambda one: (-tried[one]["development_accuracy"], tried[one]["development_loss"]))


def peft_method(
    name: str, rates: Sequence[float], objective: Objective | None = None
) -> Callable[[str, int, Path], Fitted]:
    """A method of the PEFT library, trained by our own loop; for a second seed the recipe's objective is needed."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        chosen = rates
        first = CELLS / f"{name.replace(' ', '_')}-{task}-0.json"
        if seed and first.is_file():  # a rate is chosen once
            tried = json.loads(first.read_text())["tried"]
            chosen = [tried[best(tried)]["rate"]]
        made, tried = [], []
        for rate in chosen:
            fit, found = _peft_trained(name, task, seed, rate, objective)
            made.append(fit)
            tried.append({"rate": rate, **found})
            click.echo(f"    {tried[-1]}", err=True)
        return replace(made[best(tried)], tried=tried)

    return fitted


def _peft_trained(
    name: str, task: str, seed: int, rate: float, objective: Objective | None
) -> tuple[Fitted, dict[str, Any]]:
    lm = load()
    learned = drawn(lm, task)
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(lm.model, _peft_config(name))
    engine = lm.engine
    if name == "prompt tuning":
        engine = Engine(_Prefixed(wrapped), lm.engine.layers, lm.engine.device, packed=False)
    learning = [part for part in wrapped.parameters() if part.requires_grad]
    parameters = sum(part.numel() for part in learning)
    settings = Settings(epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed, lr=rate)
    adam = torch.optim.Adam(learning, lr=rate)
    pace = optimiser.scheduler(adam, "linear", EPOCHS * math.ceil(len(learned.train) / BATCH_SIZE))
    start = time.perf_counter()

    def in_time(progress: Any) -> None:
        if time.perf_counter() - start > BUDGET:
            raise TimeoutError

    with StateStore(0) as store, nullcontext() if name == "prompt tuning" else engine.differentiated():
        measured = RECIPES["default"].temperature
        lesson = Lesson(engine, [learned], 0, store, objective=objective, temperature=measured)
        try:
            for epoch in range(1, EPOCHS + 1):
                run_epoch(lesson, learned.train, settings, {}, pace, epoch, in_time)
        except TimeoutError:
            click.echo(f"    stopped after {BUDGET:.0f} s", err=True)
        seconds = time.perf_counter() - start
        found = lesson.score(learned.development)
    with tempfile.TemporaryDirectory() as scratch:
        wrapped.save_pretrained(scratch)
        size = sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))

    def score(requests: Sequence[Any]) -> list[float]:
        return [value for value, _ in engine.loglikelihoods(list(requests), 4096)[0]]

    told = {"development_loss": found.loss, "development_accuracy": found.accuracy, "seconds": seconds}
    return Fitted(score, parameters, size, seconds), told


def _peft_config(name: str) -> Any:
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


def _Prefixed(wrapped: Any) -> Any:
    """PEFT's prompt tuning as a model whose logits are those of the real tokens."""

    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = wrapped, wrapped.config
            self.dtype = wrapped.base_model.dtype

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            logits = self.inner(input_ids=input_ids, use_cache=False).logits
            return SimpleNamespace(logits=logits[:, -input_ids.shape[1] :])

    return Prefixed()


def directions(package: str, requirement: str) -> Callable[[str, int, Path], Fitted]:
    """Directions that another package extracts; layers and strength are chosen on development documents."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        lm = load()
        learned = drawn(lm, task)
        told = {
            "model": str(model_folder()),
            "pairs": [_pair(lm, example) for example in learned.train],
            "check": [[request.context, request.continuation] for request in learned.development[0].requests],
        }
        given = peer(folder, package, requirement, "directions.py", told, package)
        vectors = {int(layer): torch.tensor(vector) for layer, vector in given["directions"].items()}
        check = Booster.static({layer: vectors[layer] for layer in given["layers"]})
        _check_directions(lm, learned.development[0].requests, check, given)
        settings = [
            *((tuple(given["layers"]), strength) for strength in (-4, -1, 0.1, 0.3, 1, 2, 4, 8)),
            *(((layer,), strength) for layer in (5, 10, 15, 20) for strength in (-8, 0.5, 1, 4, 8, 32)),
        ]
        boosters = [Booster.static({layer: vectors[layer] for layer in layers}) for layers, _ in settings]
        variants = [
            lm.steering_for(booster, strength) for booster, (_, strength) in zip(boosters, settings, strict=True)
        ]
        start = time.perf_counter()
        found = answers(lm, learned.development, variants)
        tried: list[dict[str, Any]] = [
            {
                "layers": list(layers),
                "strength": strength,
                "development_loss": sum(answer.loss for answer in own) / len(own),
                "development_accuracy": sum(bool(answer.right) for answer in own) / len(own),
            }
            for (layers, strength), own in zip(settings, found, strict=True)
        ]
        click.echo(f"    {len(tried)} settings in {time.perf_counter() - start:.0f} s", err=True)
        kept = boosters[best(tried)].scaled(tried[best(tried)]["strength"])
        path = folder / "boosters" / f"{package}-{task}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.save(str(path))
        return Fitted(scorer(lm, kept), kept.parameters, path.stat().st_size, given["seconds"], tried)

    return fitted


def _pair(lm: Any, example: Any) -> list[str]:
    """The question with its right answer, and with its first wrong one."""
    gold = example.gold[0]
    wrong = next(index for index in range(len(example.requests)) if index != gold)
    chosen = (example.requests[gold], example.requests[wrong])
    return [lm.tok_decode(list(request.context + request.continuation)) for request in chosen]


def _check_directions(lm: Any, requests: Sequence[Any], booster: Any, given: Mapping[str, Any]) -> None:
    """Our steering with the package's vectors must give what the package itself gives, up to half precision."""
    for name, found in (("plain", scorer(lm)(requests)), ("check", scorer(lm, booster)(requests))):
        difference = max(abs(one - other) for one, other in zip(found, given[name], strict=True))
        length = sum(len(request.continuation) for request in requests) / len(requests)
        click.echo(f"    {name}: the package's own loglikelihoods and ours differ by {difference:.3f}", err=True)
        if difference > 0.5 * length:
            raise click.ClickException(f"{name}: {found} is not what the package gives, {given[name]}")


def temperature(lm: Any, learned: Any) -> float:
    """The temperature that our own training would measure."""
    with StateStore(0) as store:
        return Lesson(lm.engine, [learned], 0, store, temperature=None).temperatures[learned.task]


def loreft(task: str, seed: int, folder: Path, objective: Objective = "both") -> Fitted:
    """LoReFT of pyreft, in an environment of its own."""
    lm = load()
    learned = drawn(lm, task)

    def plain(examples: Sequence[Any]) -> list[Any]:
        return [[[[r.context, r.continuation] for r in example.requests], example.gold[0]] for example in examples]

    exams = {name: exam(name, 0, count) for name, count in asked(task).items()}
    requests = {name: [[r.context, r.continuation] for r in one.requests] for name, one in exams.items()}
    requests["text"] = [[r.context, r.continuation] for r in passages()]
    told = {
        "model": str(model_folder()),
        "train": plain(learned.train),
        "development": plain(learned.development),
        "exams": requests,
        "rates": [4e-3, 1e-3],
        "objective": objective,
        "temperature": temperature(lm, learned),
        **{"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": seed, "budget": BUDGET},
    }
    given = peer(folder, "pyreft", "pyreft==0.1.0", "loreft.py", told)
    known = {
        tuple(map(tuple, request)): score
        for name, own in requests.items()
        for request, score in zip(own, given["exams"][name], strict=True)
    }

    def score(wanted: Sequence[Any]) -> list[float]:
        return [known[request.context, request.continuation] for request in wanted]

    return Fitted(score, given["parameters"], 4 * given["parameters"], given["seconds"], given["tried"])


def peer(
    folder: Path, package: str, requirement: str, script: str, told: Mapping[str, Any], *arguments: str
) -> dict[str, Any]:
    """What a script of `peers` gives, run in an environment that has one package."""
    home = folder / "environments" / package
    python = home / "bin" / "python"
    if not (home / "installed").is_file():
        click.echo(f"    installing {requirement}", err=True)
        venv.create(home, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", requirement, "torch==2.13.0"]
        ran = subprocess.run(install, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise click.ClickException(f"{requirement} cannot be installed: {ran.stderr.strip()[-500:]}")
        (home / "installed").touch()
    source, target = folder / f"{package}-input.json", folder / f"{package}-output.json"
    if target.is_file() and source.is_file() and source.read_text() == json.dumps(told):
        return json.loads(target.read_text())
    target.unlink(missing_ok=True)
    source.write_text(json.dumps(told))
    command = [str(python), str(Path(__file__).parent / "peers" / script), *arguments, str(source), str(target)]
    ran = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    if ran.returncode:
        raise click.ClickException(f"{package} failed: {ran.stderr.strip()[-500:]}")
    return json.loads(target.read_text())


METHODS: dict[str, Callable[[str, int, Path], Fitted]] = {
    "zero-shot": zero_shot,
    "five-shot": few_shot,
    "ours": ours,
    f"ours{ALONE}": partial(ours, objective="choice"),
    "ours, one layer": partial(ours, layers=(8,)),
    **{f"ours, {count} documents": partial(ours, limit=count) for count in FEWER},
    PLENTY: partial(ours, limit=600),
    **{name: peft_method(name, rates) for name, rates in RATES.items()},
    "LoReFT (pyreft)": loreft,
    **{f"{name}{ALONE}": peft_method(name, rates, "choice") for name, rates in RATES.items()},
    f"LoReFT (pyreft){ALONE}": partial(loreft, objective="choice"),
    "repeng": directions("repeng", "repeng==0.4.0"),
    "steering-vectors": directions("steering-vectors", "steering-vectors==0.12.2"),
}
