"""`aft export` and `aft import`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_cases import aft, assert_refused

from aft_harness.boosters.booster import Booster
from aft_harness.publish.export.registry import TARGETS

BASE = {"name": "m/n", "fingerprint": "ab" * 32, "architecture": "LlamaForCausalLM", "layers": 4, "hidden_size": 8}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booster:
    """A booster, in the file a.safetensors of the working folder."""
    monkeypatch.chdir(tmp_path)
    booster = Booster.static({1: torch.arange(8.0), 2: torch.ones(8)}, {"base_model": BASE})
    booster.save("a.safetensors")
    return booster


def test_help_lists_the_targets_and_their_options() -> None:
    listed = " ".join(aft("export", "--help").stdout.split())
    for target in TARGETS.values():
        assert f"{target.name} {target.summary}" in listed
        shown = aft("export", target.name, "--help").stdout
        assert all(f"--{own.name}" in shown for own in target.options) and "--scale" in shown and "--overwrite" in shown


def test_there_and_back(made: Booster) -> None:
    result = aft("export", "gguf", "a.safetensors", "-o", "v.gguf")
    assert result.exit_code == 0 and result.stderr == ""
    assert "To use it:\n    llama-server -m MODEL.gguf --control-vector v.gguf\n" in result.stdout
    back = aft("import", "v.gguf", "-o", "b.safetensors")
    assert back.exit_code == 0 and f"sha256      {made.sha256}\n" in back.stdout
    assert "imported    llama.cpp control vector\nbase model  m/n (abababababab)\n" in back.stdout
    assert Booster.load("b.safetensors").sha256 == made.sha256
    assert "imported    llama.cpp control vector" in aft("show", "b.safetensors").stdout
    mixed = aft("export", "hotwire", "a.safetensors:0.5", "a.safetensors", "-o", "v.pt", "--scale", "2")
    assert mixed.exit_code == 0
    assert aft("import", "v.pt", "-o", "c.safetensors").exit_code == 0
    assert Booster.load("c.safetensors").sha256 == made.scaled(3.0).sha256


def test_what_goes_wrong_is_one_line(made: Booster) -> None:
    Booster.static({0: torch.ones(8)}, {"base_model": BASE}).save("zero.safetensors")
    Path("taken.gguf").write_text("mine")
    for arguments, code, reason in (
        (("gguf", "zero.safetensors", "-o", "v.gguf"), 1, "cannot steer layer 0"),
        (("gguf", "a.safetensors", "-o", "taken.gguf"), 1, "taken.gguf exists; choose another"),
        (("gguf", "a.safetensors", "-o", "v.bin"), 2, "v.bin: a gguf export ends in .gguf"),
        (("gguf", "a.safetensors:x", "-o", "v.gguf"), 2, "strength 'x' is not a number"),
        (("gguf", "a.safetensors", "-o", "no/v.gguf"), 1, "no/v.gguf: cannot be written"),
        (("gguf-model", "a.safetensors", "-o", "v.gguf"), 2, "Missing option '--model'"),
        (("gguf-model", "a.safetensors", "-o", "v.gguf", "--model", "a.safetensors"), 1, "is not a GGUF file"),
        (("unknown", "a.safetensors", "-o", "v.gguf"), 2, "No such command 'unknown'"),
    ):
        assert_refused(aft("export", *arguments), code, reason)
    assert_refused(aft("import", "a.safetensors", "-o", "b.safetensors"), 1, "a booster needs no import")
    assert_refused(aft("import", "nowhere", "-o", "b.safetensors"), 1, "nowhere: no such file")
    assert_refused(aft("import", "taken.gguf", "-o", "b.gguf"), 2, "must end in .safetensors")
    assert sorted(path.name for path in Path().iterdir()) == ["a.safetensors", "taken.gguf", "zero.safetensors"]
    assert made.layers == (1, 2)
