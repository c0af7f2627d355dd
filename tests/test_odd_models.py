"""Model types that nobody has written yet: they are steered as they should be, or refused, and never silently wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.steering import Steering
from aft_harness.errors import AftError, ModelError
from aft_harness.harness.model import SteeredHFLM

SIZE, LAYERS, VOCABULARY = 16, 4, 512


class ParallelBlock(nn.Module):
    """Mixing of earlier positions and an MLP, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.mlp = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, hidden: Tensor) -> Tensor:
        places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        mixed: Tensor = self.mix(hidden.cumsum(1) / places)
        return hidden + mixed.tanh() + torch.relu(self.mlp(hidden))


class TupleBlock(ParallelBlock):
    """Returns three things, as models do that give attention weights and router logits."""

    def forward(self, hidden: Tensor) -> Any:
        return super().forward(hidden), None, {"router": hidden.mean()}


class Decoder(nn.Module):
    """Runs its layers in the way that is asked for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embeddings = nn.Embedding(VOCABULARY, SIZE)
        block = TupleBlock if kind == "tuple of three" else ParallelBlock
        self.layers: Any
        if kind == "layers in a dict":
            self.layers = nn.ModuleDict({f"block{number}": block() for number in range(LAYERS)})
        elif kind == "shared layers":
            self.layers = nn.ModuleList([block()] * LAYERS)
        else:
            self.layers = nn.ModuleList([block() for _ in range(LAYERS)])

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embeddings(tokens)
        layers = list(self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers)
        if self.kind == "early exit" and int(tokens[0, 0]) % 2:
            layers = layers[:2]
        if self.kind == "layers that repeat":
            layers = layers * 2
        for layer in layers:
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


class OddForCausalLM(PreTrainedModel):
    """A causal language model of a kind that transformers does not know."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config.odd)  # type: ignore[attr-defined]
        self.lm_head = nn.Linear(SIZE, VOCABULARY, bias=False)
        self.post_init()

    def get_decoder(self) -> nn.Module:
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids)))


def odd(kind: str) -> Any:
    config = LlamaConfig(hidden_size=SIZE, num_hidden_layers=LAYERS, num_attention_heads=2, vocab_size=VOCABULARY)
    config.odd = kind  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = OddForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def booster(layer: int) -> Booster:
    return Booster.static({layer: torch.linspace(-2, 2, SIZE)})


def by_hand(model: Any, layer: int, tokens: Tensor) -> Tensor:
    """Logits of a model with the vector of `booster` added to the output of one layer."""
    hidden = model.model.embeddings(tokens)
    for number, block in enumerate(model.model.layers):
        output = block(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
        if number == layer:
            hidden = hidden + torch.linspace(-2, 2, SIZE)
    return model.lm_head(hidden)


@pytest.mark.parametrize("kind", ["parallel residual", "tuple of three"])
def test_it_is_steered_where_it_can_be(kind: str, tiny_tokenizer: Any) -> None:
    model = odd(kind)
    tokens = torch.tensor([[3, 7, 1, 9, 4]])
    lm = SteeredHFLM(model, tokenizer=tiny_tokenizer, batch_size=4, device="cpu")
    texts = [("The child", " walks"), ("The child", " gives the dog"), ("A", " b")]
    requests = [lm.encode(*text) for text in texts]
    for layer in (0, 2, LAYERS - 1):
        with torch.no_grad():
            expected_logits = by_hand(model, layer, tokens)
            with Steering(model, booster(layer)):
                torch.testing.assert_close(model(tokens).logits, expected_logits)
        _, steered = lm.score_variants(requests, [BASELINE, Variant("a", booster(layer))])
        for request, (found, _) in zip(requests, steered, strict=True):
            with torch.no_grad():
                logits = by_hand(model, layer, torch.tensor([request.inputs]))[0].log_softmax(-1)
            places = range(len(request.context) - 1, len(request.inputs))
            expected = sum(
                logits[place, token].item() for place, token in zip(places, request.continuation, strict=True)
            )
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["layers in a dict", "shared layers"])
def test_it_is_refused_where_its_layers_cannot_be_told_apart(kind: str, tiny_tokenizer: Any) -> None:
    model = odd(kind)
    with pytest.raises(ModelError, match=r"0 lists of 4 layers|share modules"):
        SteeredHFLM(model, tokenizer=tiny_tokenizer, device="cpu")
    with pytest.raises(ModelError, match=r"share modules|not a list of layers"):
        decoder_layers(model, "model.layers")


@pytest.mark.parametrize(
    ("kind", "runs"), [("early exit", "layer 3 of OddForCausalLM ran 0 times"), ("layers that repeat", "ran 2 times")]
)
def test_a_pass_that_skips_or_repeats_a_layer_is_refused(kind: str, runs: str, tiny_tokenizer: Any) -> None:
    model = odd(kind)
    skipping = torch.tensor([[3, 7, 1]])
    with torch.no_grad(), Steering(model, booster(3)), pytest.raises(ModelError, match=runs):
        model(skipping)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    lm = SteeredHFLM(model, tokenizer=tiny_tokenizer, vector=booster(3), device="cpu", batch_size=1)
    requests: Any = [
        Instance("loglikelihood", {}, (first, " walks"), number) for number, first in enumerate(("The child", "A", "b"))
    ]
    with pytest.raises(AftError, match=r"times in one forward pass|did not reach layer 3"):
        lm.loglikelihood(requests, disable_tqdm=True)
    with torch.no_grad(), Steering(model, booster(1)):  # where it does run, nothing speaks against it
        if kind == "early exit":
            model(skipping)
