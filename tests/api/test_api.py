"""The front door: `import aft_harness as aft`, with the results and errors of the command line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from pandas.testing import assert_frame_equal
from transformers import AutoModelForCausalLM, AutoTokenizer

import aft_harness as aft
from aft_harness.boosters.mixing import mix
from aft_harness.cli import main
from aft_harness.engine.memory import discard_weights
from aft_harness.errors import AftError
from aft_harness.progress import TrainingProgress
from aft_harness.results import table
from aft_harness.results.table import COLUMNS

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
HOW: dict[str, Any] = {"tasks": "toy_choice", "include_path": [TOYS], "limit": 8, "dev_docs": 4, "epochs": 2}
OPTIONS = ["--tasks", "toy_choice", "--include-path", TOYS, "--limit", "8", "--dev-docs", "4", "--epochs", "2"]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def model(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def trained(folder: str) -> aft.TrainingResult:
    return aft.train(folder, **HOW)


def random_booster(layer: int, seed: int = 0) -> aft.Booster:
    return aft.Booster.static({layer: torch.randn(32, generator=torch.Generator().manual_seed(seed))})


def command(*arguments: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr


def snapshot(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything of a model and tokenizer that using them could change."""
    modules = dict(model.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for name, module in modules.items()
        },
        "forwards": [name for name, module in modules.items() if "forward" in vars(module)],
        "gradients": {name: (one.requires_grad, one.grad) for name, one in model.named_parameters()},
        "weights": {name: one.detach().clone() for name, one in model.state_dict().items()},
        "attention": model.config._attn_implementation,
        "cache": model.config.use_cache,
        "generation": model.generation_config.to_dict(),
        "device": str(model.device),
        "dtype": model.dtype,
        "tokenizer": {
            name: getattr(tokenizer, name)
            for name in ("padding_side", "truncation_side", "pad_token", "bos_token", "eos_token", "chat_template")
        },
    }


def assert_untouched(before: dict[str, Any], model: Any, tokenizer: Any) -> None:
    after = snapshot(model, tokenizer)
    weights = after.pop("weights")
    for name, one in before["weights"].items():
        assert torch.equal(one, weights[name]), name
    for part, value in after.items():
        assert value == before[part], part


def in_use(model: Any, tokenizer: Any) -> dict[str, Any]:
    """A model in the middle of somebody's work: partly training, partly frozen, with a hook and an odd tokenizer."""
    model.train()
    model.model.layers[1].eval()
    model.model.embed_tokens.requires_grad_(False)
    tokenizer.padding_side = "right"
    return snapshot(model, tokenizer)


def test_a_folder_a_loaded_model_and_the_command_train_the_same_booster(
    trained: aft.TrainingResult, folder: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    before = in_use(model, tokenizer)
    loaded = aft.train(model, tokenizer, **HOW)
    assert_untouched(before, model, tokenizer)
    path = tmp_path / "a.safetensors"
    command("train", "--model", folder, *OPTIONS, "--output", str(path))
    by_command = aft.Booster.load(path)
    assert trained.booster.sha256 == loaded.booster.sha256 == by_command.sha256
    assert trained.booster.provenance.training_sha256 == by_command.provenance.training_sha256
    assert loaded.epoch_losses == trained.epoch_losses
    assert not by_command.is_zero


@pytest.mark.parametrize("loaded", [True, False])
def test_only_a_model_that_was_loaded_for_the_training_is_disposable(
    loaded: bool, folder: str, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[int] = []

    def discard(*args: Any) -> int:
        discarded.append(discard_weights(*args))
        return discarded[-1]

    monkeypatch.setattr("aft_harness.training.train.discard_weights", discard)
    before = in_use(model, tokenizer)
    aft.train(*((model, tokenizer) if loaded else (folder,)), **{**HOW, "layers": 1})
    assert_untouched(before, model, tokenizer)
    assert len(discarded) == (not loaded) and all(discarded)


def test_pairs_of_a_program_and_of_a_file_train_the_same_booster(
    folder: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Number {number}:", "chosen": f" yes {number}", "rejected": " no"} for number in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how: dict[str, Any] = {"epochs": 1, "layers": 1, "objective": "both"}
    before = in_use(model, tokenizer)
    listed = aft.train(model, tokenizer, pairs=rows, **how)
    assert_untouched(before, model, tokenizer)
    read = aft.train(folder, pairs=tmp_path / "pairs.jsonl", **how)
    assert listed.booster.sha256 == read.booster.sha256
    assert listed.held_out is not None and tuple(listed.held_out.columns) == COLUMNS
    assert listed.held_out["n"].tolist() == [2, 2, 2] and listed.held_out["metric"].tolist() == [
        "acc",
        "acc_norm",
        "margin",
    ]
    found = aft.evaluate(folder, boosters=listed.booster, pairs=rows)
    assert found.table["n"].tolist() == [10, 10, 10]
    assert aft.train(folder, pairs=[aft.PairSelection(rows, held_out=0)], **how).held_out is None
    mixed = aft.train(folder, tasks="toy_choice", include_path=[TOYS], limit=4, pairs=rows, **how)
    assert mixed.booster.provenance.trained_on == ["toy_choice", "pairs"]


def test_a_model_is_given_back_after_an_error_too(model: Any, tokenizer: Any) -> None:
    before = in_use(model, tokenizer)

    def interrupted(progress: TrainingProgress, stage: str) -> None:
        if progress.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aft.train(model, tokenizer, **HOW, on_progress=interrupted)
    assert_untouched(before, model, tokenizer)
    with pytest.raises(AftError):
        aft.evaluate(model, tokenizer, "toy_choice", random_booster(9), include_path=[TOYS])
    assert_untouched(before, model, tokenizer)


def test_a_training_gives_its_losses_as_a_table_a_plot_and_files(trained: aft.TrainingResult, tmp_path: Path) -> None:
    losses = trained.losses
    assert list(losses.columns) == ["step", "epoch", "loss", "development_loss", "divergence"]
    assert list(losses["step"]) == [1, 2] and list(losses["epoch"]) == [1, 2]
    by_epoch = losses.groupby("epoch")["loss"].mean()
    assert list(by_epoch) == pytest.approx(list(trained.epoch_losses))
    assert losses["development_loss"].notna().all()
    assert trained.measured_on == "development" and (trained.before.n, trained.after.n) == (4, 4)
    figure = trained.plot()
    (axes,) = figure.axes
    drawn = {tuple(np.asarray(line.get_ydata(), dtype=float)) for line in axes.get_lines()}
    assert any(np.allclose(line, losses["loss"]) for line in drawn if len(line) == len(losses))
    for name in ("curves.png", "again.svg", "plain.csv"):
        written = trained.save_curves(tmp_path / name)
        assert [path.is_file() for path in written] == [True, True] and written[0].suffix == ".csv"
        assert_frame_equal(pd.read_csv(written[0]), losses)


def test_every_step_is_a_row_also_where_the_last_batch_is_short(folder: str) -> None:
    seen: list[TrainingProgress] = []
    result = aft.train(
        folder,
        tasks=[aft.TaskSelection("toy_choice", limit=7)],
        include_path=[TOYS],
        epochs=2,
        batch_size=3,
        layers="1-2",
        seed=1,
        on_progress=lambda progress, stage: seen.append(progress),
    )
    assert result.booster.layers == (1, 2) and result.booster.provenance.seed == 1
    assert list(result.losses["epoch"]) == [1, 1, 1, 2, 2, 2] and result.losses["development_loss"].isna().all()
    assert seen[-1].step == seen[-1].steps == 6
    assert list(result.losses["loss"])[3:] != list(result.losses["loss"])[:3]


def test_evaluation_gives_the_table_of_the_command(folder: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    for name, layer in (("a", 1), ("b", 2)):
        random_booster(layer).save(tmp_path / f"{name}.safetensors")
    vectors = [f"{tmp_path}/a.safetensors:2", f"{tmp_path}/b.safetensors"]
    found = aft.evaluate(folder, tasks="toy_choice,toy_text", boosters=vectors, include_path=[TOYS], docs="2:12")
    options = ["--tasks", "toy_choice,toy_text", "--include-path", TOYS, "--docs", "2:12"]
    asked = [word for vector in vectors for word in ("--vector", vector)]
    command("evaluate", "--model", folder, *asked, *options, "--csv", str(tmp_path / "table.csv"))
    written = table.read(tmp_path / "table.csv")
    assert tuple(found.table.columns) == COLUMNS
    assert_frame_equal(found.table.drop(columns="date"), written.drop(columns="date"), check_dtype=False)
    assert list(found.table["booster"]) == ["a.safetensors:2"] * 2 + ["b.safetensors"] * 2
    assert list(found.table["n"]) == [10] * 4 and "a.safetensors:2" in str(found)
    assert [each.variant.name for each in found.variants] == ["baseline", "a.safetensors:2", "b.safetensors"]
    before = in_use(model, tokenizer)
    loaded = aft.evaluate(model, tokenizer, ["toy_choice", "toy_text"], vectors, include_path=[TOYS], docs="2:12")
    assert_untouched(before, model, tokenizer)
    numbers = ["booster", "task", "metric", "n", "baseline", "steered", "delta", "gained", "lost", "p_value", "p_holm"]
    assert_frame_equal(loaded.table[numbers], found.table[numbers])


def test_names_of_a_mapping_stand_in_the_table(folder: str, tmp_path: Path) -> None:
    random_booster(1).save(tmp_path / "a.safetensors")
    asked = {"mine": random_booster(2), "half": f"{tmp_path}/a.safetensors:0.5", "both": [f"{tmp_path}/a.safetensors"]}
    found = aft.evaluate(folder, tasks=["toy_choice"], boosters=asked, include_path=[TOYS], limit=4)
    assert sorted(found.table["booster"]) == sorted(asked)
    assert dict(zip(found.table["booster"], found.table["strength"], strict=True)) == {
        "mine": 1.0,
        "half": 0.5,
        "both": 1.0,
    }


@pytest.mark.parametrize("boosters", [{"baseline": None, "a b": None, "a-b": None}, [None, None]])
def test_folders_of_variants_never_meet(boosters: Any, folder: str, tmp_path: Path) -> None:
    same = random_booster(1)
    asked = dict.fromkeys(boosters, same) if isinstance(boosters, dict) else [same, same]
    found = aft.evaluate(
        folder, tasks="toy_choice", boosters=asked, include_path=[TOYS], limit=3, output=tmp_path / "out"
    )
    assert len(list((tmp_path / "out").iterdir())) == len(found.variants) == len(asked) + 1
    assert len(found.table["booster"].unique()) == len(asked)


def test_what_was_computed_is_kept_in_a_file(folder: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"tasks": "toy_choice", "boosters": random_booster(1), "include_path": [TOYS], "limit": 4}
    first = aft.evaluate(folder, **asked, use_cache=tmp_path / "scores")
    done: list[tuple[int, int]] = []
    again = aft.evaluate(
        folder, **asked, use_cache=tmp_path / "scores", on_progress=lambda *progress: done.append(progress)
    )
    assert_frame_equal(first.table, again.table)
    assert not done, "nothing is left to score"


def test_a_study_runs_from_a_dictionary(folder: str, tmp_path: Path) -> None:
    plan = {
        "models": [{"pretrained": "replaced"}],
        "train": {"toy_choice": {"toy_choice": {"limit": 4}}},
        "evaluate": {"toy_choice": {"limit": 4}, "toy_blanks": {"limit": 5}},
        "layers": [[1]],
        "seeds": [0],
        "recipe": {"epochs": 1},
        "include_path": [TOYS],
    }
    models = [{"pretrained": folder, "device": "cpu", "batch_size": 4}]
    untouched = copy.deepcopy(plan)
    found = aft.transfer(plan, tmp_path / "work", models=models)
    assert plan == untouched
    assert sorted(zip(found["task"], found["n"], found["transfer"], strict=True)) == [
        ("toy_blanks", 5, 1),
        ("toy_choice", 4, 0),
    ]
    assert_frame_equal(found, table.read(tmp_path / "work" / "leaderboard.csv"), check_dtype=False)
    again = aft.transfer({**plan, "models": models}, tmp_path / "work", tmp_path / "elsewhere.csv")
    same = ["task", "booster_sha256", "baseline", "steered"]
    assert_frame_equal(again[same], found[same])
    assert (tmp_path / "elsewhere.csv").is_file()


def test_a_booster_steers_a_model_in_a_block(model: Any) -> None:
    booster, tokens = random_booster(1), torch.tensor([[5, 6, 7, 8]])
    before = model(tokens).logits
    vector = 0.5 * booster.tensors["layers.1.vector"]
    handle = model.model.layers[1].register_forward_hook(lambda module, args, output: output + vector)
    expected = model(tokens).logits
    handle.remove()
    with booster.applied_to(model, strength=0.5):
        torch.testing.assert_close(model(tokens).logits, expected)
    assert torch.equal(model(tokens).logits, before) and not torch.allclose(before, expected)
    with pytest.raises(RuntimeError, match="boom"), booster.applied_to(model):
        raise RuntimeError("boom")
    assert torch.equal(model(tokens).logits, before)


def test_boosters_are_loaded_as_vector_names_them(tmp_path: Path) -> None:
    first, second = random_booster(1), random_booster(2)
    first.save(tmp_path / "a.safetensors")
    path = f"{tmp_path}/a.safetensors"
    assert aft.Booster.load(path).sha256 == first.sha256
    assert aft.Booster.load([(path, 0.5), second]).sha256 == mix([(first, 0.5), (second, 1.0)]).sha256
    assert aft.mix is mix


def train(folder: str, **changes: Any) -> Any:
    return aft.train(folder, **{**HOW, **changes})


def evaluate(folder: str, **changes: Any) -> Any:
    return aft.evaluate(
        folder, **{"tasks": "toy_choice", "boosters": random_booster(1), "include_path": [TOYS], **changes}
    )


WRONG: dict[str, tuple[Callable[[str], Any], str]] = {
    "setting": (lambda folder: train(folder, epoch=3), r"unknown setting.*epoch"),
    "value": (lambda folder: train(folder, epochs=0), "epochs 0 must be at least 1"),
    "objective": (lambda folder: train(folder, objective="best"), "objective 'best' is not one of"),
    "layers": (lambda folder: train(folder, layers="first"), "layers 'first': expected all"),
    "layer": (lambda folder: train(folder, layers=9), "layer 9 is out of range: the model has layers 0 to 3"),
    "recipe": (lambda folder: train(folder, recipe="mine"), "unknown recipe 'mine'; expected one of default, original"),
    "task": (lambda folder: train(folder, tasks="toy_choise"), "unknown task 'toy_choise'; did you mean"),
    "pairs": (lambda folder: aft.train(folder, pairs=[{"prompt": "a"}]), "pairs: number 1: has neither chosen nor"),
    "no task": (lambda folder: train(folder, tasks=[]), "no tasks given"),
    "evaluated task": (lambda folder: evaluate(folder, tasks="toy_choise"), "unknown task 'toy_choise'"),
    "no document": (lambda folder: evaluate(folder, tasks="toy_choice", limit=0), "a limit of 0 leaves no documents"),
    "no evaluated task": (lambda folder: evaluate(folder, tasks=()), "no tasks given"),
    "folder of tasks": (lambda folder: train(folder, include_path=["nowhere"]), "nowhere: no such task folder"),
    "start": (lambda folder: train(folder, start="nowhere.safetensors"), "nowhere.safetensors: no such booster"),
    "start and auto": (
        lambda folder: train(folder, layers="auto", start=random_booster(1)),
        "layers auto and a booster to start from cannot be used together",
    ),
    "model": (lambda folder: train(f"{folder}-not-there"), "not-there: no such folder"),
    "model argument": (lambda folder: train(folder, model_args={"dtype": "float7"}), "dtype float7: expected auto"),
    "booster": (lambda folder: evaluate(folder, boosters="nowhere.safetensors"), "no such booster"),
    "slice": (lambda folder: evaluate(folder, docs="5"), "'5' is not a slice of documents"),
    "plan": (lambda folder: aft.transfer({"train": {}, "trains": {}}, f"{folder}/work"), "."),
    "plan file": (lambda folder: aft.transfer(f"{folder}/no-plan.yaml", f"{folder}/work"), "no-plan.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_is_one_line(name: str, folder: str) -> None:
    call, reason = WRONG[name]
    with pytest.raises(aft.AftError, match=reason) as caught:
        call(folder)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_a_loaded_model_needs_its_tokenizer(model: Any) -> None:
    for call in (aft.train, aft.evaluate):
        with pytest.raises(aft.AftError, match="a loaded LlamaForCausalLM also needs its tokenizer; pass tokenizer="):
            call(model, tasks="toy_choice", include_path=[TOYS])


def test_the_model_type_is_opened_for_other_uses(folder: str, model: Any, tokenizer: Any) -> None:
    before = in_use(model, tokenizer)
    with aft.opened(model, tokenizer, batch_size=2) as lm, aft.opened(folder) as other:
        assert isinstance(lm, aft.SteeredHFLM) and lm.model is model and not model.training
        assert lm.batch_size == 2 and lm.base_model.fingerprint == other.base_model.fingerprint
    assert_untouched(before, model, tokenizer)


def test_a_forecast_takes_what_a_training_takes(folder: str) -> None:
    asked = {**HOW, "model_args": {"dtype": "float32"}}
    found = aft.forecast(folder, **asked)
    assert found.peak > found.memory["weights"] > 0 and found.duration > 0
    sweep = aft.forecast(folder, **asked, layers="auto")
    assert sweep.memory["weights"] == found.memory["weights"]
    with pytest.raises(AftError, match="unknown setting"):
        aft.forecast(folder, **asked, rate=3)
