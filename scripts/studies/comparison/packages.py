"""Methods of other packages: repeng, steering-vectors and pyreft, each in an environment of its own.

Knows how such an environment is made and what the scripts of `peers` read and write. What a package's directions do is
checked here against what it does itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from comparison.exams import exam, exams_of, learned_from, load, passages
from comparison.fitted import BATCH_SIZE, BUDGET, EPOCHS, Fitted, Method, best, save, scorer

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import Variant
from aft_harness.demo import model_folder
from aft_harness.training.development import ranking_scores
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Objective, Settings


def directions(package: str, requirement: str) -> Method:
    """Directions that another package extracts; layers and strength are chosen on development documents."""

    def fitted(task: str, seed: int, folder: Path) -> Fitted:
        lm = load()
        examples = learned_from(lm, task)
        first = examples.development[0].requests
        asked = {
            "model": str(model_folder()),
            "pairs": [_pair(lm, example) for example in examples.train],
            "check": _tokens(first),
        }
        extracted = _run(folder, package, requirement, "directions.py", asked, package)
        vectors = {int(layer): torch.tensor(vector) for layer, vector in extracted["directions"].items()}
        together = tuple(extracted["layers"])
        _check(lm, first, Booster.static({layer: vectors[layer] for layer in together}), extracted)
        settings: list[tuple[tuple[int, ...], float]] = [
            *((together, strength) for strength in (-4, -1, 0.1, 0.3, 1, 2, 4, 8)),
            *(((layer,), strength) for layer in (5, 10, 15, 20) for strength in (-8, 0.5, 1, 4, 8, 32)),
        ]
        variants = [
            Variant(f"{layers} {strength}", Booster.static({layer: vectors[layer] for layer in layers}), strength)
            for layers, strength in settings
        ]
        start = time.perf_counter()
        scores = ranking_scores(lm, variants, [examples], examples.development)
        tried: list[dict[str, Any]] = [
            {
                "layers": list(layers),
                "strength": strength,
                "development_loss": score.loss,
                "development_accuracy": score.accuracy,
            }
            for (layers, strength), score in zip(settings, scores, strict=True)
        ]
        click.echo(f"    {len(tried)} settings in {time.perf_counter() - start:.0f} s", err=True)
        chosen = variants[best(tried)]
        assert chosen.booster is not None
        kept = chosen.booster.scaled(chosen.strength)
        path = save(kept, folder, f"{package}-{task}")
        return Fitted(scorer(lm, kept), kept.parameters, path.stat().st_size, extracted["seconds"], tried)

    return fitted


def loreft(task: str, seed: int, folder: Path, objective: Objective = "both") -> Fitted:
    """LoReFT of pyreft."""
    lm = load()
    examples = learned_from(lm, task)
    requests = {name: exam(name, 0, count).requests for name, count in exams_of(task).items()}
    requests["text"] = passages()
    asked = {
        "model": str(model_folder()),
        "train": [[_tokens(example.requests), example.gold[0]] for example in examples.train],
        "development": [[_tokens(example.requests), example.gold[0]] for example in examples.development],
        "exams": {name: _tokens(each) for name, each in requests.items()},
        "rates": [4e-3, 1e-3],
        "objective": objective,
        # What our training would measure.
        "temperature": PreparedObjective(lm.engine, [examples], Settings()).temperatures[examples.task],
        **{"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": seed, "budget": BUDGET},
    }
    result = _run(folder, "pyreft", "pyreft==0.1.0", "loreft.py", asked)
    known = {
        (request.context, request.continuation): score
        for name, each in requests.items()
        for request, score in zip(each, result["exams"][name], strict=True)
    }

    def score(wanted: Sequence[Any]) -> list[float]:
        return [known[request.context, request.continuation] for request in wanted]

    return Fitted(score, result["parameters"], 4 * result["parameters"], result["seconds"], result["tried"])


def _tokens(requests: Sequence[Any]) -> list[Any]:
    return [[request.context, request.continuation] for request in requests]


def _pair(lm: Any, example: Any) -> list[str]:
    """The question with its right answer, and with its first wrong one."""
    gold = example.gold[0]
    wrong = next(index for index in range(len(example.requests)) if index != gold)
    chosen = (example.requests[gold], example.requests[wrong])
    return [lm.tok_decode(list(request.context + request.continuation)) for request in chosen]


def _check(lm: Any, requests: Sequence[Any], booster: Booster, extracted: Mapping[str, Any]) -> None:
    """Our steering with the package's vectors must give what the package itself gives, up to half precision."""
    for name, scores in (("plain", scorer(lm)(requests)), ("check", scorer(lm, booster)(requests))):
        difference = max(abs(left - right) for left, right in zip(scores, extracted[name], strict=True))
        length = sum(len(request.continuation) for request in requests) / len(requests)
        click.echo(f"    {name}: the package's loglikelihoods and ours differ by {difference:.3f}", err=True)
        if difference > 0.5 * length:
            raise click.ClickException(f"{name}: {scores} is not what the package gives, {extracted[name]}")


def _run(
    folder: Path, package: str, requirement: str, script: str, asked: Mapping[str, Any], *arguments: str
) -> dict[str, Any]:
    """What a script of `peers` gives, run in an environment that has one package."""
    home = folder / "environments" / package
    python = home / "bin" / "python"
    if not (home / "installed").is_file():
        click.echo(f"    installing {requirement}", err=True)
        venv.create(home, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", requirement, "torch==2.13.0"]
        process = subprocess.run(install, capture_output=True, text=True, check=False)
        if process.returncode:
            raise click.ClickException(f"{requirement} cannot be installed: {process.stderr.strip()[-500:]}")
        (home / "installed").touch()
    source, target = folder / f"{package}-input.json", folder / f"{package}-output.json"
    if target.is_file() and source.is_file() and source.read_text() == json.dumps(asked):
        return json.loads(target.read_text())
    target.unlink(missing_ok=True)
    source.write_text(json.dumps(asked))
    command = [str(python), str(Path(__file__).parent / "peers" / script), *arguments, str(source), str(target)]
    process = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    if process.returncode:
        raise click.ClickException(f"{package} failed: {process.stderr.strip()[-500:]}")
    return json.loads(target.read_text())
