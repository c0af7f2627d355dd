"""`steered-vllm`: lm-eval's own `VLLM` over a stand-in for vLLM itself, which loads folders as anybody does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.documents import text_hash
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.errors import BoosterError, CacheError, ExportError, ModelError, ReferenceSyntaxError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.publish import overlays
from aft_harness.publish.export.base import Base
from aft_harness.results.runs import Run, rows

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent / "standin"
TOYS = str(ROOT / "tests" / "toy_tasks")
TEXTS = [
    ("The child opens the door", " and sits down"),
    ("The child opens the door", " and walks to school"),
    ("She looks around the room.", " light"),
    ("", "Plants need water"),
    ("Question: what is it? Answer: ", "an apple"),
]
MODULE, STOCK = "aft_harness.publish.vllm", "lm_eval.models.vllm_causallms"


@pytest.fixture(scope="module")
def ours() -> Iterator[ModuleType]:
    """Our module over the stand-in; both are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STANDIN))
        sys.modules.pop(MODULE, None)
        yield importlib.import_module(MODULE)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or name == MODULE]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def booster(layer: int = 1, seed: int = 7, **provenance: Any) -> Booster:
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(32, generator=generator)}, provenance)


def requests(kind: str = "loglikelihood", texts: Any = TEXTS) -> list[Instance]:
    return [Instance(kind, {}, tuple(args), index) for index, args in enumerate(texts)]


def answers(lm: Any) -> list[Any]:
    """Loglikelihoods, of windows too, and texts."""
    rolling = [("The child puts on a coat because it is cold. " * 9,), ("Light.",)]
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [(context, dict(settings)) for context, _ in TEXTS if context]
    scores = [value for pair in lm.loglikelihood(requests()) for value in pair]
    scores += lm.loglikelihood_rolling(requests("loglikelihood_rolling", rolling))
    return [*(round(float(score), 3) for score in scores), *lm.generate_until(requests("generate_until", asked))]


def close(left: list[Any], right: list[Any]) -> bool:
    return all(
        a == b or (isinstance(a, float) and a == pytest.approx(b, abs=2e-3)) for a, b in zip(left, right, strict=True)
    )


def loaded() -> list[dict[str, Any]]:
    return sys.modules["vllm"].LOADED


@pytest.mark.parametrize("arguments", [{}, {"vector": booster(), "scale": 0.0}])
def test_without_a_booster_it_is_the_stock_type(ours: ModuleType, model: str, arguments: Any) -> None:
    stock = sys.modules[STOCK].VLLM
    mine, theirs = ours.SteeredVLLM(model, dtype="float32", **arguments), stock(model, dtype="float32")
    assert isinstance(mine, stock) and loaded()[-2] == loaded()[-1]
    assert answers(mine) == answers(theirs) and not overlays.overlays()
    assert mine.tokenizer_name == theirs.tokenizer_name


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi"])
def test_with_a_booster_it_answers_as_steered_hf(ours: ModuleType, tiny_checkpoint: Any, architecture: str) -> None:
    folder = str(tiny_checkpoint(architecture))
    mine = ours.SteeredVLLM(folder, booster(), 0.5, dtype="float32")
    expected = answers(SteeredHFLM(folder, booster(), 0.5, device="cpu", dtype="float32", batch_size=2))
    assert close(answers(mine), expected) and not close(answers(ours.SteeredVLLM(folder)), expected)
    (made,) = overlays.overlays()
    assert loaded()[-2]["model"] == str(made.folder) and made.record["strength"] == 0.5
    assert mine.tokenizer_name == folder.replace("/", "__")
    ours.SteeredVLLM(folder, booster(), 0.5)
    assert len(overlays.overlays()) == 1 and loaded()[-1]["model"] == str(made.folder)


def test_results_say_what_ran_and_are_paired(ours: ModuleType, model: str) -> None:
    used = booster(method="aft", objective="choice", tasks=[{"task": "toy_choice"}])

    def run(**arguments: Any) -> Run:
        found = simple_evaluate(
            model=ours.SteeredVLLM(model, **arguments),
            tasks=["toy_choice"],
            task_manager=TaskManager(include_path=TOYS),
            bootstrap_iters=0,
        )
        plain = json.loads(json.dumps(found, default=str))
        return Run({**plain, "model_name": "m", "lm_eval_version": "0"}, plain["samples"], "memory")

    base, steered = run(), run(vector=used, scale=0.5)
    record = steered.results["config"]["aft"]
    assert (record["booster_sha256"], record["layers"], record["strength"]) == (used.sha256, [1], 0.5)
    assert record["base_model"] == SteeredHFLM(model, device="cpu").base_model.model_dump(mode="json")
    assert base.results["config"]["aft"]["booster_sha256"] is None
    row = rows([base, steered])[0]
    assert (row["architecture"], row["dtype"], row["device"]) == ("LlamaForCausalLM", "float32", "cpu")
    assert row["parameters"] == make_tiny_model("llama").num_parameters() and row["trained_on"] == "toy_choice"


def folders(tiny_checkpoint: Any, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "a.gguf").write_text("GGUF")
    found = {name: str(tiny_checkpoint(name)) for name in ("llama", "qwen3", "gemma2")}
    return {**found, "file": str(tmp_path / "a.gguf"), "nowhere": str(tmp_path / "nowhere")}


def contextual() -> Booster:
    fresh = ContextualInjection.fresh(32, 2, 0)
    return Booster.of({1: dataclasses.replace(fresh, up_bias=torch.ones(32))})


@pytest.mark.parametrize(
    ("where", "arguments", "error", "says"),
    [
        ("llama", {"scale": "much"}, ReferenceSyntaxError, "scale='much' is not a number"),
        ("llama", {"vector": "nowhere.safetensors"}, BoosterError, "no such booster file"),
        ("llama", {"vector": Booster.static({1: torch.ones(8)})}, BoosterError, "hidden size of 8"),
        ("llama", {"vector": booster(9)}, BoosterError, "layer 9 is out of range"),
        ("llama", {"vector": contextual()}, ExportError, "contextual injection.*`--model steered-hf` runs it"),
        ("qwen3", {"vector": booster()}, ExportError, "no bias at mlp.down_proj.*with `--model steered-hf`$"),
        (
            "gemma2",
            {"vector": booster()},
            ExportError,
            "no linear layer's bias.*`--model steered-hf` runs it",
        ),
        ("file", {"vector": booster()}, ModelError, "a.gguf: not a folder but a file"),
        ("nowhere", {"vector": booster()}, ModelError, "nowhere: no such folder"),
        ("nowhere", {}, ModelError, "vLLM cannot load .*nowhere"),
        ("llama", {"vektor": "a"}, ModelError, "vLLM cannot load .*unexpected keyword argument 'vektor'"),
    ],
)
def test_what_cannot_run_is_one_line(
    ours: ModuleType, tiny_checkpoint: Any, tmp_path: Path, where: str, arguments: Any, error: Any, says: str
) -> None:
    before = len(loaded())
    with pytest.raises(error, match=says) as caught:
        ours.SteeredVLLM(folders(tiny_checkpoint, tmp_path)[where], **arguments)
    assert "\n" not in str(caught.value) and not overlays.overlays()
    assert len(loaded()) == before or where == "nowhere"  # a wrong booster does not cost the load of an engine


def test_it_warns_as_steered_hf_does(
    ours: ModuleType, model: str, tiny_checkpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"hashes": [text_hash("What is 1?")]}
    base = SteeredHFLM(str(tiny_checkpoint("llama", seed=5)), device="cpu").base_model.model_dump()
    trained = booster(documents=known, base_model=base, prompting={"apply_chat_template": True})
    asked = [
        Instance("loglikelihood", {"question": f"What is {n}?"}, (f"What is {n}?", " 1"), 0, metadata=("toy", n, 1))
        for n in range(3)
    ]
    with caplog.at_level(logging.WARNING, "aft_harness"):
        ours.SteeredVLLM(model, trained).loglikelihood(asked)
    for warning in ("1 of 3 documents of toy are among", "the booster was made for", "evaluated without it"):
        assert warning in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "aft_harness"):
        ours.SteeredVLLM(model).loglikelihood(asked)
    assert not caplog.text


def test_a_response_cache_of_another_run_is_refused(ours: ModuleType, model: str, tmp_path: Path) -> None:
    def cached(lm: Any, name: str) -> Any:
        return CachingLM(lm, str(tmp_path / name)).loglikelihood(requests())

    steered = cached(ours.SteeredVLLM(model, booster()), "a.db")
    assert cached(ours.SteeredVLLM(model, booster()), "a.db") == steered
    for arguments in ({}, {"vector": booster(), "scale": 0.5}, {"vector": booster(), "dtype": "bfloat16"}):
        with pytest.raises(CacheError, match=r"a\.db: this response cache was written with .*; use a new path"):
            cached(ours.SteeredVLLM(model, **arguments), "a.db")
    with pytest.raises(CacheError, match="written with steered-vllm, not steered-hf; use a new path"):
        cached(SteeredHFLM(model, booster(), device="cpu"), "a.db")
    cached(sys.modules[STOCK].VLLM(model), "stock.db")
    with pytest.raises(CacheError, match="was not written by steered-vllm"):
        cached(ours.SteeredVLLM(model), "stock.db")


def test_revisions_are_those_of_the_base(ours: ModuleType, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def of(name: str, revision: str | None = None) -> Base:
        asked.append((name, revision))
        return Base(Path(model), name)

    tokenizer = SteeredHFLM(model, device="cpu").tokenizer
    monkeypatch.setattr(Base, "of", of)
    monkeypatch.setattr(sys.modules["transformers"].AutoTokenizer, "from_pretrained", lambda name, **given: tokenizer)
    ours.SteeredVLLM("me/model", booster(), revision="abc", tokenizer_revision="def")
    assert asked == [("me/model", "abc")]
    assert loaded()[-1]["revision"] is None and loaded()[-1]["tokenizer_revision"] == "def"
    assert loaded()[-1]["tokenizer"] == "me/model" and str(overlays.overlays()[0].folder) == loaded()[-1]["model"]


def test_a_model_that_cannot_be_identified_is_still_a_baseline(
    ours: ModuleType, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str, revision: str | None = None) -> Base:
        raise ModelError("has neither of them")

    monkeypatch.setattr(Base, "of", unknown)
    lm = ours.SteeredVLLM(model)
    assert len(lm.loglikelihood(requests())) == len(TEXTS)
    record = lm.get_model_info()
    assert record["aft"]["base_model"]["name"] == Path(model).name and record["model_num_parameters"] is None


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (PackageNotFoundError("vllm"), "vLLM is installed under another name"),
        (RuntimeError("operator torchvision::nms\ndoes not exist"), "cannot be imported .RuntimeError: operator .*nms"),
    ],
)
def test_a_vllm_that_does_not_work_is_one_line(ours: ModuleType, failure: Exception, says: str, model: str) -> None:
    class Failing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == STOCK:
                raise failure

    kept = {name: sys.modules.pop(name) for name in (MODULE, STOCK)}
    sys.meta_path.insert(0, Failing())  # type: ignore[arg-type]
    try:
        with pytest.raises(ModelError, match=says) as caught:
            importlib.import_module(MODULE).SteeredVLLM(model)
        assert "\n" not in str(caught.value)
    finally:
        del sys.meta_path[0]
        sys.modules.update(kept)


def stock_lm_eval(*arguments: str, standin: bool, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = [ROOT / "aft_harness" / "bridge", ROOT, *([STANDIN] if standin else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "lm_eval", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=280)


def test_the_stock_cli_runs_it(model: str, tmp_path: Path) -> None:
    booster().save(tmp_path / "a.safetensors")
    arguments = ["--model", "steered-vllm", "--tasks", "toy_choice", "--include_path", TOYS, "--output_path", "out"]
    arguments += ["--model_args", f"pretrained={model},vector=a.safetensors,scale=0.5"]
    done = stock_lm_eval(*arguments, standin=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert written["config"]["aft"]["booster_sha256"] == booster().sha256
    assert written["config"]["model_dtype"] == "torch.float32" and len(overlays.overlays()) == 1
    without = stock_lm_eval(*arguments, standin=False, cwd=tmp_path)
    last = without.stderr.strip().splitlines()[-1]
    assert without.returncode and last.endswith("pip install 'aft-harness[vllm]' (on a CPU see docs/vllm.md)")
