from __future__ import annotations

import json
import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from booster_cases import SPEC, made
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aft_harness.boosters import file_format
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.file_format import sidecar
from aft_harness.boosters.provenance import Documents
from aft_harness.errors import BoosterError, FileError


def written(path: Path, tensors: dict[str, torch.Tensor], header: Any) -> Path:
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()},
        path,
        metadata={"aft": header if isinstance(header, str) else json.dumps(header)},
    )
    return path


def header(**changes: Any) -> dict[str, Any]:
    return {"format_version": 1, "injections": {"2": SPEC}, "provenance": {}, **changes}


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    booster = made(3, 1, method="aft", tasks=[{"task": "arc_easy"}])
    booster.save(tmp_path / "a.safetensors")
    loaded = Booster.load(tmp_path / "a.safetensors")
    assert loaded.layers == (1, 3)
    assert loaded.provenance == booster.provenance
    assert loaded.sha256 == booster.sha256
    for name, tensor in booster.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_the_file_is_plain_safetensors_with_the_documented_names(tmp_path: Path) -> None:
    made(7).save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"layers.7.vector": torch.float32}


def test_equal_boosters_are_equal_files(tmp_path: Path) -> None:
    for name in "abcdef":
        made(1, 2, method="aft", seed=1).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_saving_leaves_the_old_file_whole_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    made(1).save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match="cannot be written"):
        made(2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_saving_into_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere.*cannot be written"):
        made(1).save(tmp_path / "nowhere" / "a.safetensors")


def test_many_documents_go_into_a_sidecar_and_come_back(tmp_path: Path) -> None:
    hashes = [f"{number:016x}" for number in range(2001)]
    path = tmp_path / "a.safetensors"
    made(1, documents={"count": 2001, "hashes": hashes}).save(path)
    assert path.stat().st_size < 2000
    assert sidecar(path).read_text().split() == hashes
    assert Booster.load(path).provenance.documents == Documents(count=2001, hashes=tuple(hashes))
    sidecar(path).unlink()
    missing = Booster.load(path).provenance.documents
    assert missing is not None and (missing.sidecar, missing.hashes, missing.unlisted) == (True, (), 2001)


HASHES = [f"{number:016x}" for number in range(2001)]


def with_sidecar(path: Path, **changes: Any) -> Path:
    """A booster of many documents whose record has some other fields; None is one that is missing."""
    made(1, documents={"count": 2001, "hashes": HASHES}).save(path)
    with safe_open(path, "pt") as file:
        recorded = json.loads(file.metadata()["aft"])
    documents = recorded["provenance"]["documents"] | changes
    recorded["provenance"]["documents"] = {key: value for key, value in documents.items() if value is not None}
    return written(path, load_file(path), recorded)


def test_the_list_of_an_earlier_booster_is_used_where_form_and_count_fit(tmp_path: Path) -> None:
    path = with_sidecar(tmp_path / "a.safetensors", sidecar_sha256=None)
    for hashes in (HASHES, HASHES[:1990], HASHES[::-1]):  # rows with one question share a hash
        sidecar(path).write_text("".join(f"{line}\n" for line in hashes))
        assert Booster.load(path).provenance.hashes == set(hashes)
    sidecar(path).write_text("\r\n".join(HASHES))
    assert Booster.load(path).provenance.hashes == set(HASHES)


STRANGE = {
    "too many": (
        "".join(f"{number:016x}\n" for number in range(2002)),
        "larger than|does not match the booster's 2001",
    ),
    "a repeated line": ("\n".join([*HASHES[:5], *HASHES[:5]]), "does not match the booster's 2001"),
    "nothing": ("", "does not match the booster's 2001"),
    "other lines": ("root:x:0:0:root:/root:/bin/bash\n", "not a list of hashes"),
    "capitals": ("\n".join(line.upper() for line in [*HASHES, "abcdefabcdefabcd"][1:]), "not a list of hashes"),
    "long lines": ("\n".join(line * 2 for line in HASHES[:900]), "not a list of hashes"),
    "other hashes": ("\n".join(HASHES[:-1]), "another booster"),
    "another order": ("\n".join(HASHES[::-1]), "another booster"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_list_that_is_not_this_boosters_is_not_used(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, reason = STRANGE[name]
    for digest in [{}] if "another" in reason else [{}, {"sidecar_sha256": None}]:
        path = with_sidecar(tmp_path / "a.safetensors", **digest)
        sidecar(path).write_text(text)
        caplog.clear()
        provenance = Booster.load(path).provenance
        assert provenance.hashes == frozenset() and provenance.unlisted == 2001
        (record,) = caplog.records
        assert re.search(reason, record.getMessage()) and str(sidecar(path)) in record.getMessage()
        # An error in a record that a handler keeps would keep the booster's file mapped.
        assert isinstance(record.args, tuple) and all(isinstance(each, str) for each in record.args)
        # Nor does it come into what is saved next.
        made(1).with_provenance(**provenance.to_json()).save(tmp_path / "b.safetensors")
        assert not sidecar(tmp_path / "b.safetensors").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device", "broken link", "loop"])
def test_only_a_regular_file_is_read(kind: str, tmp_path: Path) -> None:
    def make(path: Path) -> None:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            targets = {"device": "/dev/zero", "link to a device": tmp_path / "zero", "broken link": "x", "loop": path}
            path.symlink_to(targets[kind])

    (tmp_path / "zero").symlink_to("/dev/zero")
    path = with_sidecar(tmp_path / "a.safetensors")
    sidecar(path).unlink()
    make(sidecar(path))
    assert Booster.load(path).provenance.unlisted == 2001
    make(tmp_path / "b.safetensors")
    with pytest.raises(BoosterError, match=r"no such booster file|not a regular file|cannot be read"):
        Booster.load(tmp_path / "b.safetensors")
    if kind in ("pipe", "device", "folder", "link to a device"):  # which no file may take the place of
        with pytest.raises(FileError, match=r"b\.safetensors: cannot be written"):
            made(1).save(tmp_path / "b.safetensors")
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)


def test_a_link_to_the_list_is_followed(tmp_path: Path) -> None:
    # As in the cache of the hub.
    path = with_sidecar(tmp_path / "a.safetensors")
    sidecar(path).rename(tmp_path / "blob")
    sidecar(path).symlink_to("blob")
    assert Booster.load(path).provenance.hashes == set(HASHES)


def test_a_list_needs_a_count(tmp_path: Path) -> None:
    with pytest.raises(BoosterError, match=r"documents: .*needs a count"):
        Booster.load(with_sidecar(tmp_path / "a.safetensors", count=None))
    made(1, documents={"hashes": HASHES}).save(tmp_path / "b.safetensors")
    assert Booster.load(tmp_path / "b.safetensors").provenance.hashes == set(HASHES)


def test_loading_looks_at_each_tensor_once() -> None:
    # Not once for each layer: thousands of layers took seconds.
    looks = 0

    class Watched(dict[str, torch.Tensor]):
        def items(self) -> Any:
            nonlocal looks
            looks += 1
            return super().items()

    booster = made(*range(50))
    injections = file_format._read_injections(booster.specs, Watched(booster.tensors))
    assert len(injections) == 50 and looks == 1


def bad_files() -> dict[str, tuple[Any, str]]:
    vector = torch.ones(8)
    nan = torch.tensor([1.0, float("nan")])

    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps({"layers.2.vector": [1.0]}))

    def torch_pickled(path: Path) -> None:
        torch.save({"layers.2.vector": vector}, path)

    def tensors(named: dict[str, torch.Tensor], head: Any = None) -> Any:
        return lambda path: written(path, named, header() if head is None else head)

    return {
        "missing": (lambda path: None, "no such booster file"),
        "empty": (lambda path: path.write_bytes(b""), "not a safetensors file"),
        "pickle": (pickled, "never pickle"),
        "torch pickle": (torch_pickled, "never pickle"),
        "text": (lambda path: path.write_text("hello " * 100), "not a safetensors file"),
        "folder": (lambda path: path.mkdir(), "not a regular file"),
        "other safetensors": (lambda path: save_file({"x": vector}, path), "not a booster"),
        "no json": (tensors({"layers.2.vector": vector}, "{"), "not valid JSON"),
        "no object": (tensors({"layers.2.vector": vector}, "[]"), "not a JSON object"),
        "version": (tensors({"layers.2.vector": vector}, header(format_version=9)), "format version 9"),
        "no injections": (tensors({"layers.2.vector": vector}, {"format_version": 1, "provenance": {}}), "injections"),
        "no layers": (tensors({"layers.2.vector": vector}, header(injections={})), "unknown tensor"),
        "unknown kind": (
            tensors({"layers.2.vector": vector}, header(injections={"2": {**SPEC, "kind": "magic"}})),
            "kind 'magic'",
        ),
        "kind of another type": (
            tensors({"layers.2.vector": vector}, header(injections={"2": {**SPEC, "kind": ["static"]}})),
            "kind ['static']",
        ),
        "unknown positions": (
            tensors({"layers.2.vector": vector}, header(injections={"2": {**SPEC, "positions": "last"}})),
            "positions",
        ),
        "negative layer": (
            tensors({"layers.-1.vector": vector}, header(injections={"-1": SPEC})),
            "layer '-1' is out of range",
        ),
        "unknown tensor": (tensors({"layers.2.vector": vector, "layers.3.vector": vector}), "unknown tensor"),
        "missing tensor": (tensors({"layers.3.vector": vector}), "layer 2"),
        "wrong dimensions": (tensors({"layers.2.vector": torch.ones(2, 4)}), "one dimension"),
        "wrong dtype": (tensors({"layers.2.vector": vector.half()}), "not float32"),
        "nan": (tensors({"layers.2.vector": nan}), "NaN"),
        "two sizes": (
            tensors(
                {"layers.2.vector": vector, "layers.3.vector": nan.nan_to_num()},
                header(injections={"2": SPEC, "3": SPEC}),
            ),
            "same hidden size",
        ),
    }


@pytest.mark.parametrize("name", bad_files())
def test_loading_refuses_with_file_and_reason_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = bad_files()[name]
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(BoosterError) as caught:
        file_format.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and reason in message and "\n" not in message


def test_loading_refuses_a_file_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    made(1).save(path)
    monkeypatch.setattr(file_format, "SIZE_LIMIT", 10)
    with pytest.raises(BoosterError, match="at most 10"):
        Booster.load(path)
