"""The start-up bridge, each time in a fresh interpreter, out of the checkout: nothing needs to be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BRIDGE = ROOT / "aft_harness" / "bridge"

BOOT = f"""
import sys
import aft_harness_boot
assert aft_harness_boot.__file__ == {str(BRIDGE / "aft_harness_boot.py")!r}
bridges = [finder for finder in sys.meta_path if type(finder).__name__ == "ModelsFinder"]
def placeholder(name="steered-hf"):
    from lm_eval.api.registry import model_registry
    return dict(model_registry.items()).get(name)
"""


def run(code: str, *flags: str, path: tuple[Path, ...] = (BRIDGE, ROOT)) -> subprocess.CompletedProcess[str]:
    # What PYTHONPATH names comes before site-packages: an installed bridge gives way to the one in the checkout.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True)


def check(code: str, *flags: str) -> None:
    done = run(BOOT + code, *flags)
    assert done.returncode == 0, done.stderr


def test_the_stock_registry_gives_our_class_and_its_own() -> None:
    check("""
from lm_eval.api.registry import get_model
steered, stock = get_model("steered-hf"), get_model("hf")
assert (steered.__module__, steered.__name__) == ("aft_harness.harness.model", "SteeredHFLM")
assert (stock.__module__, stock.__name__) == ("lm_eval.models.huggingface", "HFLM")
assert issubclass(steered, stock)
from lm_eval.api.model import LM
gguf = get_model("steered-gguf")  # known, and an error of one line, where llama-cpp-python is not installed
assert (gguf.__module__, gguf.__name__) == ("aft_harness.harness.gguf", "SteeredGgufLM") and issubclass(gguf, LM)
vllm = get_model("steered-vllm")  # known, and an error of one line, where vLLM is not installed
assert (vllm.__module__, vllm.__name__) == ("aft_harness.publish.vllm", "SteeredVLLM") and issubclass(vllm, LM)
""")


@pytest.mark.parametrize("first", ["lm_eval.api.registry", "lm_eval.models", "lm_eval.models.dummy"])
def test_the_name_is_known_whatever_is_imported_first(first: str) -> None:
    check(f"""
import {first}
from lm_eval.api.registry import get_model
assert get_model("dummy").__name__ == "DummyLM"
assert placeholder() == "aft_harness.harness.model:SteeredHFLM"
assert placeholder("steered-gguf") == "aft_harness.harness.gguf:SteeredGgufLM"
assert placeholder("steered-vllm") == "aft_harness.publish.vllm:SteeredVLLM"
assert "aft_harness" not in sys.modules and "torch" not in sys.modules
""")


def test_importing_it_twice_is_harmless() -> None:
    check("""
import importlib
assert len(bridges) == 1
importlib.reload(aft_harness_boot)
del sys.modules["aft_harness_boot"]
import aft_harness_boot
assert [finder for finder in sys.meta_path if type(finder).__name__ == "ModelsFinder"] == bridges
import lm_eval.models
assert placeholder() == "aft_harness.harness.model:SteeredHFLM"
importlib.reload(lm_eval.models)
assert placeholder() == "aft_harness.harness.model:SteeredHFLM"
""")


def test_importing_it_imports_nothing_else() -> None:
    # -S: without site-packages nothing has been imported yet but what every interpreter needs to start.
    done = run("import sys; before = set(sys.modules); import aft_harness_boot; print(set(sys.modules) - before)", "-S")
    assert done.stdout == "{'aft_harness_boot'}\n", done.stderr


def test_a_name_that_is_taken_stays_as_it_is() -> None:
    code = """
from lm_eval.api.registry import model_registry
model_registry.register("steered-hf", target="elsewhere:Model")
import lm_eval.models
assert placeholder() == "elsewhere:Model"
assert placeholder("steered-gguf") and placeholder("steered-vllm") and "hf" in model_registry
"""
    done = run(BOOT + code)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_lm_eval_that_discovers_plugins_is_left_alone() -> None:
    check("""
from lm_eval.api import registry
registry.load_plugins = lambda group, registry: []
import lm_eval.models
assert "hf" in registry.model_registry
assert placeholder() is placeholder("steered-gguf") is placeholder("steered-vllm") is None
""")


def test_lm_eval_survives_a_registry_that_cannot_be_used() -> None:
    code = """
from lm_eval.api.registry import model_registry
model_registry.register = lambda name, target: 1 / (not name.startswith("steered-"))
import lm_eval.models
assert "hf" in lm_eval.models.MODEL_MAPPING
"""
    done = run(BOOT + code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"lm-eval will not know --model {name}: ZeroDivisionError('division by zero')"
        for name in ("steered-hf", "steered-gguf", "steered-vllm")
    ]


def test_two_bridges_do_not_call_each_other_in_circles() -> None:
    check("""
sys.meta_path.insert(0, type(bridges[0])())
import lm_eval.models
assert placeholder() == "aft_harness.harness.model:SteeredHFLM"
""")


def test_the_module_looks_as_if_nobody_had_touched_it() -> None:
    check("""
import importlib.util, inspect
assert "MODEL_MAPPING" in importlib.util.find_spec("lm_eval.models").loader.get_source("lm_eval.models")
import lm_eval.models
assert type(lm_eval.models.__spec__.loader).__name__ == "SourceFileLoader"
assert lm_eval.models.__loader__ is lm_eval.models.__spec__.loader
assert "MODEL_MAPPING" in inspect.getsource(lm_eval.models)
""")


@pytest.mark.parametrize("boot", ["present", "missing", "broken"])
def test_the_pth_line_never_prints(boot: str, tmp_path: Path) -> None:
    shutil.copy(BRIDGE / "aft_harness.pth", tmp_path)
    if boot == "present":
        shutil.copy(BRIDGE / "aft_harness_boot.py", tmp_path)
    elif boot == "broken":
        (tmp_path / "aft_harness_boot.py").write_text("not Python")
    done = run(
        f"""
import site, sys
for _ in range(2):  # in a virtual environment a folder can be read twice
    site.addsitedir({str(tmp_path)!r})
    sys.modules.pop("aft_harness_boot", None)
print([type(finder).__name__ for finder in sys.meta_path].count("ModelsFinder"))
""",
        "-S",
        path=(),
    )
    assert (done.stdout, done.stderr) == ("1\n" if boot == "present" else "0\n", "")
