from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from aft_harness.api import evaluation as api
from aft_harness.engine.gguf_file import is_gguf
from aft_harness.engine.llama_library import checked_file, library
from aft_harness.errors import AftError, ModelError, ParseError
from aft_harness.harness.gguf import SteeredGgufLM
from aft_harness.harness.gguf_loading import batch_size, llama_settings
from aft_harness.harness.opening import opened
from aft_harness.publish.export.registry import export


def test_arguments_are_those_of_llama_cpp() -> None:
    found = llama_settings({"n_threads": 3, "flash_attn": True, "type_k": "Q8_0", "max_batch_size": None})
    assert (found.n_threads, found.flash_attn, found.type_k, found.type_v) == (3, "on", "q8_0", None)
    assert llama_settings({}).n_threads == torch.get_num_threads() and llama_settings({}).n_gpu_layers is None
    assert llama_settings({}, "cpu").n_gpu_layers == 0
    assert [batch_size(each) for each in (4, "4", "auto", "auto:2")] == [4, 4, "auto", "auto"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_thread": 2}, "unknown argument 'n_thread' of steered-gguf; did you mean n_threads=?"),
        ({"peft": "x"}, "unknown argument 'peft' of steered-gguf; it takes "),
        ({"n_threads": 0}, "n_threads=0: expected a whole number above 0"),
        ({"flash_attn": "maybe"}, "flash_attn=maybe: expected auto, off, on"),
        ({"type_v": "q3"}, "type_v=q3: expected f32, f16"),
        ({"repack": "perhaps"}, "repack=perhaps: expected on or off"),
        ({"n_gpu_layers": "all"}, "n_gpu_layers=all: expected a number of layers, or -1 for all"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16: steered-gguf runs a file as it is"),
    ],
)
def test_what_is_no_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)):
        llama_settings(arguments)


def test_files_that_are_no_models_are_refused_before_llama_cpp_sees_them(tmp_path: Path) -> None:
    from aft_harness.boosters.booster import Booster

    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "empty.gguf").touch()
    base = {"base_model": {"layers": 4, "hidden_size": 32, "architecture": "LlamaForCausalLM"}}
    vector = export("gguf", Booster.static({1: torch.ones(32)}, base), tmp_path / "vector.gguf").path
    for path, message in [
        (tmp_path / "none.gguf", "no such GGUF file"),
        (tmp_path, "a folder; name the .gguf file in it"),
        (tmp_path / "text.gguf", "is not a GGUF file"),
        (tmp_path / "empty.gguf", "is empty"),
        (vector, "a control vector, not a model"),
    ]:
        with pytest.raises(ModelError, match=f"^{re.escape(str(path))}: .*{message}"):
            checked_file(path)
        with pytest.raises(ModelError, match=message):
            SteeredGgufLM(path)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'aft-harness\[gguf\]'"):
        library()


def test_only_evaluation_takes_a_file(tmp_path: Path) -> None:
    assert is_gguf("a/b.GGUF") and is_gguf(tmp_path / "m.gguf") and not is_gguf("a/b") and not is_gguf(None)
    with pytest.raises(AftError, match="can only be evaluated"), opened("m.gguf"):
        pass
    with pytest.raises(AftError, match="no such GGUF file"):
        api.evaluate("m.gguf", tasks="arc_easy", boosters=[])
