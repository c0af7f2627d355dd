"""`aft export checkpoint`, `peft` and `lm-eval`, as they are typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import aft, assert_refused, bad_boosters

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Booster.static({1: torch.ones(32)}).save("a.safetensors")


def test_what_the_command_prints_can_be_used(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_checkpoint("llama")
    done = aft("export", "checkpoint", "a.safetensors:0.5", "a.safetensors", "--model", base, "-o", "out")
    assert done.exit_code == 0, done.output
    use, check = done.stdout.split("To use it:")[1].split("To see that it is on:")
    assert "lm_eval --model hf --model_args pretrained=out --tasks TASKS" in use
    printed: list[float] = []
    exec("\n".join(line.strip() for line in check.splitlines()), {"print": printed.append})
    assert printed == pytest.approx([1.5 * 32**0.5], rel=1e-4)  # the norm of one and a half of a vector of ones
    assert f"# {printed[0]:.4g}" in check
    assert "compared in float32" in done.stdout


def test_lone_files_and_adapters(tiny_checkpoint: Any) -> None:
    base = tiny_checkpoint("llama")
    for target, output in (("lm-eval", "a.pt"), ("peft", "adapter")):
        done = aft("export", target, "a.safetensors", "--model", base, "--output", output)
        assert done.exit_code == 0, done.output
        assert f"written  {output} in" in done.stdout
    assert sorted(os.listdir()) == ["a.pt", "a.pt.json", "a.safetensors", "adapter"]


def test_refusals_are_one_line(tiny_checkpoint: Any, tmp_path: Path) -> None:
    base, gemma = tiny_checkpoint("llama"), tiny_checkpoint("gemma2")
    common = ("--model", base, "-o", "out")
    for vector, reason in bad_boosters(tmp_path).items():
        code = 2 if vector.endswith(":x") else 1
        assert_refused(aft("export", "checkpoint", vector, *common), code, reason)
    assert_refused(aft("export", "peft", "a.safetensors", "--model", gemma, "-o", "out"), 1, "no linear layer's bias")
    Booster.of({1: ContextualInjection.fresh(32, 2, 0)}).save("c.safetensors")
    assert_refused(aft("export", "checkpoint", "c.safetensors", *common), 1, "contextual")
    assert_refused(aft("export", "checkpoint", "a.safetensors", "--model", "nowhere", "-o", "out"), 1, "nowhere")
    (tmp_path / "out").mkdir()
    assert_refused(aft("export", "checkpoint", "a.safetensors", *common), 1, "out exists; choose another")
    assert_refused(aft("export", "lm-eval", "a.safetensors", "-o", "a.bin"), 2, "ends in .pt")
    assert aft("export", "checkpoint", "a.safetensors", "-o", "new").exit_code == 2
    assert aft("export", "nothing", "a.safetensors").exit_code == 2


def test_an_interrupted_export_says_so_and_leaves_nothing(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aft_harness.publish.export import overlay

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    base = tiny_checkpoint("llama")
    monkeypatch.setattr(overlay, "_write_json", interrupted)
    done = aft("export", "checkpoint", "a.safetensors", "--model", base, "-o", "out")
    assert done.exit_code == 130 and "Interrupted: nothing was written." in done.stderr
    assert os.listdir() == ["a.safetensors"]
    assert "Traceback" not in done.output
