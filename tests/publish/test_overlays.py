from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import Variant
from aft_harness.engine.steering import Steering
from aft_harness.errors import ExportError, FileError
from aft_harness.publish import overlays
from aft_harness.publish.export.base import Base
from aft_harness.publish.export.identity import identity_of

TOKENS = torch.tensor([[1, 5, 9, 200, 17, 4, 4, 90, 33, 250]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def saved(folder: Path, architecture: str = "llama", **settings: Any) -> Path:
    make_tiny_model(architecture, **settings).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def booster(seed: int = 0) -> Booster:
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(32, generator=generator) for layer in (0, 2)})


def made(folder: Path, seed: int = 0, strength: float = 1.0) -> Path:
    base = Base.of(str(folder))
    return overlays.overlay(base, identity_of(base)[0], Variant("mine", booster(seed), strength))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits


def test_it_says_what_the_steered_model_says(model: Path, home: Path) -> None:
    folder = made(model, strength=0.5)
    steered = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad(), Steering(steered, booster(), 0.5):
        torch.testing.assert_close(logits(folder), steered(TOKENS).logits, rtol=1e-6, atol=1e-5)
    assert folder.parent == home / "overlays" and not [path for path in folder.parent.iterdir() if "tmp" in path.name]


def test_it_is_made_once_for_what_is_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(model)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in first.iterdir()}
    os.utime(first / "aft_export.json", (0, 0))
    monkeypatch.setattr("aft_harness.publish.export.checkpoint.write", None)
    assert made(model) == first
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in first.iterdir()} == before
    assert (first / "aft_export.json").stat().st_mtime > 0  # so that one sees what is in use


def test_whatever_is_in_it_has_another_one(model: Path, tmp_path: Path) -> None:
    found = [made(model), made(model, seed=1), made(model, strength=2)]
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": "{{ messages }}"}))
    found.append(made(model))
    assert "messages" in (found[-1] / "tokenizer_config.json").read_text()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    found.append(made(model))
    # A number that no fingerprint looks at.
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\0\0\0\0"
    (tmp_path / "new").write_bytes(data)
    os.replace(tmp_path / "new", weights)
    found.append(made(model))
    assert found[-1].joinpath("model-base.safetensors").read_bytes() == data
    assert len(set(found)) == len(found) == len(overlays.overlays())
    assert overlays.overlays()[0].folder == found[-1]


def test_one_whose_links_lead_nowhere_is_made_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", impossible)
    folder = made(model)
    assert (folder / "model-base.safetensors").is_symlink()
    moved = model.rename(tmp_path / "moved")
    assert not (folder / "model-base.safetensors").exists()
    assert made(moved) == folder  # the files are the same ones
    assert (folder / "model-base.safetensors").exists()
    logits(folder)


def test_it_is_made_in_one_thread_so_that_an_engine_may_fork(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aft_harness.publish.export import registry

    threads, write, before = [], registry.written, torch.get_num_threads()
    monkeypatch.setattr(
        registry, "written", lambda *args, **given: (threads.append(torch.get_num_threads()), write(*args, **given))
    )
    torch.set_num_threads(2)
    try:
        made(model)
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_two_at_once_make_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aft_harness.publish.export import registry

    calls: list[int] = []
    write, both = registry.written, threading.Barrier(2, timeout=60)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return write(*arguments, **options)

    def ask() -> None:
        both.wait()
        found.append(made(model))

    monkeypatch.setattr(registry, "written", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2 and len(set(found)) == 1 and len(calls) == 1


def test_a_refusal_leaves_nothing(tmp_path: Path, home: Path) -> None:
    model = saved(tmp_path / "qwen3", "qwen3")
    with pytest.raises(ExportError, match="models of type qwen3 have no bias"):
        made(model)
    assert [path.name for path in (home / "overlays").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_line(model: Path, home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(FileError, match="overlays: cannot be created"):
        made(model)


def test_clearing_leaves_the_models(model: Path, home: Path) -> None:
    assert overlays.clear() == overlays.overlays() == []
    folder, before = made(model), (model / "model.safetensors").read_bytes()
    (each,) = overlays.overlays()
    assert each.own < (model / "model.safetensors").stat().st_size
    assert each.record["base_model"].startswith("model (") and each.record["booster"] == "mine"
    assert [each.folder for each in overlays.clear()] == [folder]
    assert not folder.exists() and (model / "model.safetensors").read_bytes() == before
    assert made(model) == folder


def test_the_command_lists_and_clears(model: Path) -> None:
    folder = made(model, strength=0.5)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aft_harness", "overlays", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    listed = run()
    assert "MB  mine at strength 0.5, model (" in listed.stdout and not listed.stderr
    assert run("--clear").stdout == listed.stdout and not folder.exists()
    empty = run()
    assert (empty.stdout, empty.stderr) == ("", f"none in {folder.parent}\n")
