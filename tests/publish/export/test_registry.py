from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from export_cases import booster, checkpoint

from aft_harness.errors import AftError, ExportError
from aft_harness.publish.export.registry import TARGETS, export
from aft_harness.publish.export.target import Exported, Order, Target


def test_every_target_says_what_it_is() -> None:
    for name, target in TARGETS.items():
        assert target.name == name and target.summary.endswith(".") and len(target.summary) < 90
        assert (target.shape == "folder") == (not target.suffix)
        assert all(option.help for option in target.options)


@pytest.mark.parametrize(
    ("target", "output", "options", "reason"),
    [
        ("gguuf", "a", {}, r"no export target 'gguuf'; there are checkpoint, peft, "),
        ("lm-eval", "a.pt", {"fulll": True}, r"lm-eval has no option 'fulll'; it has model"),
        ("checkpoint", "a", {}, r"checkpoint needs the option 'model'"),
        ("lm-eval", "a.bin", {}, r"ends in \.pt"),
        ("lm-eval", "no/folder/a.pt", {"model": "base"}, r"a\.pt: cannot be written \(No such file or directory\)"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    target: str, output: str, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(AftError, match=reason):
        export(target, booster(), tmp_path / output, **options)
    assert not os.listdir(tmp_path)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", "llama"))
    for vector in (booster(), booster(1)):
        export("lm-eval", vector, tmp_path / "a.pt", model=base, overwrite=vector is not booster)
    first = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(ExportError, match=r"a\.pt exists; choose another output, or overwrite it"):
        export("lm-eval", booster(), tmp_path / "a.pt", model=base)
    assert (tmp_path / "a.pt").read_bytes() == first
    export("lm-eval", booster(2), tmp_path / "a.pt", model=base, overwrite=True)
    assert json.loads((tmp_path / "a.pt.json").read_text())["booster_sha256"] == booster(2).sha256
    os.unlink(tmp_path / "a.pt")
    (tmp_path / "a.pt.json").write_text('{"booster": "b"}')
    with pytest.raises(ExportError, match=r"a\.pt\.json exists; choose"):  # somebody's, for all that is known
        export("lm-eval", booster(), tmp_path / "a.pt", model=base)


def test_a_folder_that_is_no_export_is_never_replaced(tmp_path: Path) -> None:
    base = str(checkpoint(tmp_path / "base", "llama"))
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="full is not an export of aft_harness, and is not replaced"):
        export("peft", booster(), tmp_path / "full", model=base, overwrite=True)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    for vector in (booster(), booster(1)):
        export("peft", vector, tmp_path / "empty", model=base, overwrite=True)
    record = json.loads((tmp_path / "empty" / "aft_export.json").read_text())
    assert record["booster_sha256"] == booster(1).sha256 and record["form"] == "beft"
    with pytest.raises(ExportError, match="is a folder, and a lm-eval export is a file"):
        export("lm-eval", booster(), (tmp_path / "empty").rename(tmp_path / "b.pt"), model=base, overwrite=True)


@pytest.mark.parametrize("shape", ["folder", "file with record"])
def test_what_a_target_raises_leaves_nothing(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(order: Order) -> Exported:
        assert order.place.name == order.output.name and not order.place.exists()
        if shape == "folder":
            order.place.mkdir()
            (order.place / "a").write_text("half")
        else:
            order.place.write_text("half")
        raise OSError(28, "No space left on device")

    target = Target("mine", "A target.", write, shape)  # type: ignore[arg-type]
    monkeypatch.setitem(TARGETS, "mine", target)  # type: ignore[arg-type]
    with pytest.raises(AftError, match=r"out: cannot be written \(No space left on device\)"):
        export("mine", booster(), tmp_path / "out")
    assert not os.listdir(tmp_path)
