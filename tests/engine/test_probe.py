from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import alone, assert_equal, engine, made_requests

from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.probe import Deviation, Extent
from aft_harness.engine.rows import batches
from aft_harness.engine.scoring import Request
from aft_harness.engine.trie import pack

UNPACKABLE = {"bloom": {}, "mamba": {}, "falcon": {"alibi": True}}


@pytest.mark.parametrize("architecture", UNPACKABLE)
def test_models_that_take_no_tree_mask_get_plain_rows(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture, **UNPACKABLE[architecture])
    requests = made_requests()
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, 500)
    assert_equal(found, [alone(model, request) for request in requests])
    assert not runner.packed


def test_a_window_is_noticed_only_by_rows_that_are_longer(tiny_model: Any) -> None:
    # The trap: a mask without the window agrees on short rows, so what was checked must grow with the rows.
    model = tiny_model("mistral", sliding_window=16)
    runner = engine(model)
    del runner.forward_pass.mask_forms[:-1]  # the form that forgets the window
    short = [Request((5, 6, 7), (8, 9)), Request((5, 6, 7), (10,))]
    (found,) = runner.loglikelihoods(short, 100)
    assert runner.packed
    assert_equal(found, [alone(model, request) for request in short])
    requests = made_requests()
    (found,) = runner.loglikelihoods(requests, 500)
    assert not runner.packed
    assert_equal(found, [alone(model, request) for request in requests])


def test_a_long_row_without_branches_proves_nothing_about_branches(tiny_model: Any) -> None:
    # A recurrent model agrees with itself on a chain; the tree beside it is what it cannot take.
    model = tiny_model("mamba")
    requests = [Request(tuple(range(3, 90)), (5, 6)), *made_requests(documents=3)]
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, 500)
    assert not runner.packed
    assert_equal(found, [alone(model, request) for request in requests])


def test_the_check_costs_three_plain_rows(tiny_model: Any) -> None:
    model, requests = tiny_model("llama"), made_requests()
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    runner = engine(model)
    runner.loglikelihoods(requests, 5000)
    first = [size for size in sizes if size > 6]  # trying how the head runs takes six tokens
    sizes.clear()
    runner.loglikelihoods(requests, 5000)
    assert len(first) <= len(sizes) + 3 + 2  # and two passes of a few layers


def test_an_upper_layer_that_uses_more_of_the_lower_ones_is_run_in_full(tiny_model: Any) -> None:
    model = tiny_model("llama")
    layers = decoder_layers(model)
    seen: list[torch.Tensor] = []
    layers[0].register_forward_hook(lambda module, args, output: seen.append(2 * output))
    layers[3].register_forward_hook(lambda module, args, output: output + seen[-1])
    layers[3].register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    runner = engine(model, packed=False)
    batch = batches(pack([(5, 6, 7)], [1], 1), 100)[0]
    assert not runner.resumes(batch, 1)


@pytest.mark.parametrize("accepts", ["a number", "nothing", "positions of all rows", "no hooks"])
def test_the_head_runs_on_chosen_positions_whatever_the_model_accepts(tiny_model: Any, accepts: str) -> None:
    model = tiny_model("llama")
    requests = made_requests()
    expected = [alone(model, request) for request in requests]
    forward = model.forward

    def older(input_ids: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        if accepts == "a number" and not isinstance(logits_to_keep, int):
            raise IndexError("too many indices for tensor of dimension 3")
        kept = logits_to_keep if accepts == "positions of all rows" else 0
        return forward(input_ids, **kwargs) if isinstance(kept, int) else cut(forward(input_ids, **kwargs), kept)

    def cut(output: Any, kept: torch.Tensor) -> Any:
        output.logits = output.logits[:, kept.any(0).nonzero()[:, 0]]
        return output

    model.forward = older
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    if accepts == "no hooks":
        model.get_output_embeddings = lambda: None
    runner = engine(model)
    assert runner.probe.head == ("whole" if accepts == "no hooks" else "module")
    (found,) = runner.loglikelihoods(requests, 500)
    assert runner.packed
    assert_equal(found, expected)
    rows.clear()
    runner.loglikelihoods(requests, 500)
    predicted = {
        (*request.inputs[: len(request.inputs) - back],)
        for request in requests
        for back in range(len(request.continuation))
    }
    assert (sum(rows) == len(predicted)) == (accepts != "no hooks")


@pytest.mark.parametrize(
    ("dtype", "difference", "tokens", "agrees"),
    [
        (torch.float32, 0.0, 1, True),
        (torch.float32, 0.1, 1, False),
        (torch.float32, float("nan"), 1, False),
        # Two steps of a logit of 16 to 32: no reason to give packed rows up, which a single token had been.
        (torch.bfloat16, 0.25, 1, True),
        (torch.bfloat16, 1.5, 1, False),
        (torch.bfloat16, 1.4, 10, True),
        (torch.bfloat16, 1.6, 10, False),
        (torch.bfloat16, float("nan"), 10, False),
    ],
)
def test_packed_rows_that_deviate_are_given_up(
    tiny_model: Any, dtype: torch.dtype, difference: float, tokens: int, agrees: bool
) -> None:
    runner = engine(tiny_model("llama").to(dtype))
    (batch,) = batches(pack([(5, 6, 7), (5, 6, 8)], [1, 1], 8), 100)
    compared: list[set[int]] = []

    def compare(scored: str, members: Any) -> Any:
        compared.append(set(members))
        return [Deviation(difference, tokens)]

    found = runner.probe.checked(batch, lambda: "scores", compare)
    assert (found == "scores", runner.packed, runner.probe.covers(batch)) == (agrees, agrees, agrees)
    assert compared[0] == {0, 1}


def test_half_precision_is_judged_by_sums_that_are_not_rounded(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # loglikelihoods of -100 and below, in steps of 1/2 where they are rounded
    runner, found = engine(model.to(torch.bfloat16)), list[Deviation]()
    checked = runner.probe.checked

    def spy(batch: Any, score: Any, compare: Any) -> Any:
        return checked(batch, score, lambda *given: [found.append(each) or each for each in compare(*given)])

    monkeypatch.setattr(runner.probe, "checked", spy)
    requests = [Request((5, 6, 7), tuple(range(10 + start, 20 + start))) for start in range(0, 200, 20)]
    (scores,) = runner.loglikelihoods(requests, 400, softmax_dtype=None)
    assert runner.packed and min(score for score, _ in scores) < -100
    assert all(score == torch.tensor(score).bfloat16().item() for score, _ in scores)
    (plain,) = runner.plain().loglikelihoods(requests, 1, softmax_dtype=torch.float32)
    assert any(score != torch.tensor(score).bfloat16().item() for score, _ in plain)
    assert found and any(each.difference % 0.25 for each in found)


def test_an_extent_covers_what_is_smaller_in_every_respect() -> None:
    extent = Extent(8, 4, False) | Extent(6, 5, True)
    assert extent == Extent(8, 5, True)
    assert Extent(8, 5, False) <= extent
    assert not any(larger <= extent for larger in (Extent(9, 1), Extent(1, 6)))
    assert not Extent(1, 1, True) <= Extent(9, 9, False)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 9.0, 16.0, 25.0],
    "original_max_position_embeddings": 24,
}


@pytest.fixture
def longrope() -> Any:
    """A model that chooses its frequencies by the longest sequence of a pass, as Phi-3 and Phi-4 do."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "phi3",
        **sizes,
        num_key_value_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        original_max_position_embeddings=24,
        rope_parameters=LONGROPE,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_a_model_that_looks_at_the_whole_pass_gets_each_row_alone(longrope: Any) -> None:
    long = [Request(tuple(range(3, 70)), (5, 6)), Request(tuple(range(4, 60)), (7,))]
    short = [Request((5 + place, 6, 7), (8, 9 + place)) for place in range(15)]
    requests = [*long, *short]
    expected = [alone(longrope, request) for request in requests]
    beside = (
        longrope(torch.tensor([[*short[0].inputs, *[0] * 63]])).logits[0, 3]
        - longrope(torch.tensor([short[0].inputs])).logits[0, 3]
    )
    assert beside.abs().max() > 0.05  # else nothing is tested
    runner = engine(longrope)
    (found,) = runner.loglikelihoods(requests, 4000)
    assert_equal(found, expected)
    assert runner.probe.alone


def test_short_rows_first_prove_nothing_about_long_ones(longrope: Any) -> None:
    short = [Request((5 + place, 6, 7), (8, 9 + place)) for place in range(15)]
    runner = engine(longrope)
    (found,) = runner.loglikelihoods(short, 4000)
    assert_equal(found, [alone(longrope, request) for request in short])
    assert runner.packed
    requests = [Request(tuple(range(3, 70)), (5, 6)), *short]
    (found,) = runner.loglikelihoods(requests, 4000)
    assert_equal(found, [alone(longrope, request) for request in requests])
