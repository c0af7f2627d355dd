from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from booster_cases import SPEC, made
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
    assert Booster.load(path).provenance.documents == Documents(count=2001, sidecar=True)


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
        "pickle": (pickled, "never pickles"),
        "torch pickle": (torch_pickled, "never pickles"),
        "text": (lambda path: path.write_text("hello " * 100), "not a safetensors file"),
        "folder": (lambda path: path.mkdir(), "is not a file"),
        "other safetensors": (lambda path: save_file({"x": vector}, path), "not a booster"),
        "no json": (tensors({"layers.2.vector": vector}, "{"), "not JSON"),
        "no object": (tensors({"layers.2.vector": vector}, "[]"), "not a JSON object"),
        "version": (tensors({"layers.2.vector": vector}, header(format_version=9)), "format version 9"),
        "no injections": (tensors({"layers.2.vector": vector}, {"format_version": 1, "provenance": {}}), "injections"),
        "no layers": (tensors({"layers.2.vector": vector}, header(injections={})), "unknown tensors"),
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
        "unknown tensor": (tensors({"layers.2.vector": vector, "layers.3.vector": vector}), "unknown tensors"),
        "missing tensor": (tensors({"layers.3.vector": vector}), "layer 2"),
        "wrong dimensions": (tensors({"layers.2.vector": torch.ones(2, 4)}), "one dimension"),
        "wrong dtype": (tensors({"layers.2.vector": vector.half()}), "not float32"),
        "nan": (tensors({"layers.2.vector": nan}), "NaN"),
        "two sizes": (
            tensors(
                {"layers.2.vector": vector, "layers.3.vector": nan.nan_to_num()},
                header(injections={"2": SPEC, "3": SPEC}),
            ),
            "one hidden size",
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
