"""A model that is known by its configuration only, and what a use of it will take: memory and time.

What trainings and evaluations take is linear in the number of layers, so that both are tried for a moment on models of
two and of four layers, as wide as the real one, with random weights. Knows configurations and the model type; knows
nothing of what is tried.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoTokenizer

from aft_harness.engine.skeleton import FAILURES, invented, read_config, skeleton, with_layers
from aft_harness.errors import ModelError
from aft_harness.harness import preflight
from aft_harness.harness.model import SteeredHFLM
from aft_harness.text import reason

SHALLOW, DEEP = 2, 4
"""Layers of the models that are tried. Only the positions that are asked for run in the topmost one."""

_OF_LOADING = ("revision", "dtype", "trust_remote_code", "subfolder")
_CHANGES_WEIGHTS = ("peft", "delta", "gguf_file", "quantization_config", "load_in_8bit", "load_in_4bit", "parallelize")


@dataclass(frozen=True)
class Forecast:
    """What a training or an evaluation will take.

    Attributes:
        memory: Bytes by use: `program` and `weights`; of a training `hidden states`, `predictions` (of the texts that
            are kept) and `passes`; of an evaluation `keys and values`.
        spilled: Bytes of hidden states that go to a temporary file.
        seconds: By stage: of a training as in `TrainingResult.stages`, of an evaluation by type of request.
        work: What it does, in words.
    """

    memory: Mapping[str, int]
    spilled: int
    seconds: Mapping[str, float]
    work: str = ""

    @property
    def peak(self) -> int:
        """Bytes of memory at the peak."""
        return sum(self.memory.values())

    def repeated(self, times: int) -> Forecast:
        """Of so many of them, one after the other."""
        return replace(self, seconds={stage: times * seconds for stage, seconds in self.seconds.items()})

    @property
    def duration(self) -> float:
        """Seconds without loading the model."""
        return sum(self.seconds.values())


class Blueprint:
    """A model that is known by its configuration and its tokenizer only.

    Attributes:
        layers: Number of its decoder layers.
        hidden: Width of its residual stream.
        vocabulary: Number of tokens that it predicts.
        itemsize: Bytes of a number.
        weights: Bytes of its parameters and buffers.
        architecture: Its kind, as messages call it.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        """Reads the configuration and the tokenizer.

        Args:
            model: Hub id or folder.
            arguments: Further arguments of `steered-hf`.

        Raises:
            AftError: There is no configuration or tokenizer, an argument cannot be understood, or the weights are not
                those of the configuration.
        """
        preflight.check(model, arguments)
        if changed := [name for name in _CHANGES_WEIGHTS if arguments.get(name)]:
            raise ModelError(f"what a model loaded with {changed[0]}= takes cannot be estimated without loading it")
        revision = arguments.get("revision")
        self._config = read_config(model, revision=revision)
        if getattr(self._config, "quantization_config", None):
            raise ModelError(f"{model}: what a quantised checkpoint takes cannot be estimated without loading it")
        self._arguments = {name: value for name, value in arguments.items() if name not in _OF_LOADING}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision or "main")
        except FAILURES as error:
            raise ModelError(f"{model}: has no tokenizer that can be read ({reason(error, sentence=True)})") from None
        asked = arguments.get("dtype", "auto")
        known = self._config.get_text_config(decoder=True).dtype or self._config.dtype or torch.float32
        wanted = known if asked in (None, "auto") else asked
        self._dtype: torch.dtype = getattr(torch, str(wanted).removeprefix("torch."))
        self.layers = int(self._config.get_text_config(decoder=True).num_hidden_layers)
        self.itemsize = self._dtype.itemsize
        self.weights = self.weights_of(self.layers)
        self.hidden = int(self._config.get_text_config(decoder=True).hidden_size)
        self.vocabulary = int(self._config.get_text_config(decoder=True).vocab_size)
        self.architecture = str(self._config.model_type)

    @property
    def keys_and_values(self) -> int:
        """Bytes that are kept of each token of a text that is being written, where all layers are attention."""
        text = self._config.get_text_config(decoder=True)
        layers = getattr(text, "per_layer_config", None) or [text] * self.layers  # whose heads may differ
        return 2 * self.itemsize * sum(map(self._key_width, layers))

    def _key_width(self, layer: Any) -> int:
        heads = int(getattr(layer, "num_attention_heads", None) or 1)
        each = int(getattr(layer, "head_dim", None) or self.hidden // heads)
        return each * int(getattr(layer, "num_key_value_heads", None) or heads)

    def weights_of(self, layers: int) -> int:
        """Bytes of parameters and buffers of the first layers and all that is not a layer."""
        empty = skeleton(with_layers(self._config, layers))
        tensors = {id(tensor): tensor for tensor in (*empty.parameters(), *empty.buffers())}
        return sum(tensor.numel() for tensor in tensors.values()) * self.itemsize

    @contextmanager
    def built(self, layers: int) -> Iterator[SteeredHFLM]:
        """A model of some layers of this kind, with random weights."""
        model = invented(with_layers(self._config, layers), self._dtype)
        yield SteeredHFLM(model, tokenizer=self._tokenizer, **self._arguments)
        del model
        gc.collect()
