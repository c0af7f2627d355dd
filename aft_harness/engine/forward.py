"""Forward passes of a causal language model over batches of rows: whole, up to a layer, or from a layer on.

Knows how a model takes its input and its mask, on which positions its head runs and what its layers return. Knows
nothing of requests, and not what a model is able to do, which is `probe.py`'s work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aft_harness.engine.block_attention import is_quicker, replacing_fused
from aft_harness.engine.decoder import hidden_size, layer_settings, text_config
from aft_harness.engine.mask import additive_mask, visible
from aft_harness.engine.partial import computed_up_to, given_only, last_mlp, narrowed, recomputed, resumed_after
from aft_harness.engine.rows import Batch
from aft_harness.engine.steering import recorded

MaskForm = Callable[[Batch], Tensor | dict[str, Tensor]]
"""A way in which a model may want the mask of a batch: one for all layers, or one for each type of layer."""

HeadForm = Literal["argument", "module", "whole"]
"""How a model's head runs on chosen positions alone: the model is told them, the head is given them, or it does not."""


class ForwardPass:
    """Forward passes of one model, under whatever steering is in force.

    Attributes:
        model: The model.
        layers: Its decoder layers.
        device: Where its input goes.
        mask_forms: The ways in which the model may want the mask of packed rows, the likeliest first; the first is
            used. Empty where rows are plain: a chain of tokens is what a causal model expects anyway, and right padding
            needs no mask.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, device: torch.device, *, packed: bool = True) -> None:
        """Prepares to run; nothing runs yet.

        Args:
            model: A causal language model.
            layers: Its decoder layers.
            device: Where its input goes.
            packed: Whether rows may be packed; False means that all are plain.
        """
        self.model, self.layers, self.device = model, layers, device
        self.mask_forms: list[MaskForm] = list(self._possible_mask_forms()) if packed else []
        self._output_size = 0  # of the tuple that a layer returns; 0 for a bare tensor

    @property
    def packed(self) -> bool:
        """Whether rows may be packed, and are run with a mask and position ids."""
        return bool(self.mask_forms)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations: autocast's where it is on, the model's otherwise."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.model.dtype  # type: ignore[return-value]

    @cached_property
    def attention_cost(self) -> float:
        """Cost of one more key column for one token, relative to what the token costs in the layers' products."""
        weights = sum(parameter.numel() for parameter in self.layers[0].parameters())
        # Two products of the width of all heads, against one with every weight.
        return 2 * hidden_size(self.model) / max(weights, 1)

    def run(self, batch: Batch, **kwargs: Any) -> Any:
        """What the model returns for a batch.

        Args:
            batch: The rows; packed ones only where `packed` is true.
            **kwargs: Further arguments of the model.
        """
        if self.packed:
            kwargs |= {
                "attention_mask": self.mask_forms[0](batch),
                "position_ids": batch.position_ids.to(self.device),
            }
        with replacing_fused(self.model) if is_quicker(self.device, self.dtype) and self.packed else nullcontext():
            return self.model(input_ids=batch.input_ids.to(self.device), use_cache=False, **kwargs)

    def logits(self, batch: Batch, keep: Tensor, head: HeadForm) -> Tensor:
        """Logits [n, vocabulary] at the n True positions of `keep`, row by row.

        Args:
            batch: The rows.
            keep: bool [rows, width].
            head: How the model's head runs on those positions alone.
        """
        keep = keep.to(self.device)
        # Plain rows, which packed ones are checked against, run the last layer whole.
        mlp = last_mlp(self.layers) if self.packed else None
        with narrowed(mlp, keep) if mlp else nullcontext():
            logits = self.returned(batch, keep, head)
        if logits.dim() == 2:
            return logits
        # Learned prompts of PEFT stand in front of the row, with logits of their own.
        return logits[:, -keep.shape[1] :][keep.to(logits.device)]

    def returned(self, batch: Batch, keep: Tensor, head: HeadForm) -> Tensor:
        """The logits that the model returns: [n, vocabulary] if its head ran on the chosen positions alone."""
        if head == "argument":
            return self.run(batch, logits_to_keep=keep).logits
        module = self.model.get_output_embeddings() if head == "module" else None  # type: ignore[operator]
        with nullcontext() if module is None else given_only(module, keep):
            return self.run(batch).logits

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Unsteered output of a layer, [rows, width, hidden]; the layers above and the head do not run."""
        with torch.no_grad():
            output = computed_up_to(self.layers, layer, lambda: self.run(batch))
        self._output_size = len(output) if isinstance(output, tuple | list) else 0
        return output[0] if isinstance(output, tuple | list) else output

    def outputs(self, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of several layers, [rows, width, hidden], of one pass that ends at the highest of them."""
        top = max(wanted)
        with ExitStack() as recording:
            lower = {layer: recording.enter_context(recorded(self.layers, layer)) for layer in wanted if layer != top}
            highest = self.hidden(batch, top)
        return {layer: highest if layer == top else lower[layer][0] for layer in wanted}

    def resumed(self, layer: int, hidden: Tensor) -> AbstractContextManager[None]:
        """In this context, passes start at the output of `layer`, which is `hidden` as the method `hidden` gave it."""
        rest = (None,) * (self._output_size - 1)
        return resumed_after(self.layers, layer, (hidden, *rest) if self._output_size else hidden)

    def recomputed(self, lowest: int) -> AbstractContextManager[None]:
        """In this context the layers above `lowest` keep little for the backward pass, see `partial.recomputed`.

        The last one is left out: parts of it run on some positions only, and its backward pass is the first.
        """
        return recomputed(list(self.layers)[lowest + 1 : -1])

    @contextmanager
    def differentiated(self) -> Iterator[bool]:
        """In this block attention is the kind whose backward pass is quick; yields whether it is another kind.

        The rule: on a CPU, in half precision, plain matrix products instead of torch's fused attention, whose backward
        pass is slow there; everywhere else what the model has.
        """
        model: Any = self.model
        fused = getattr(model.config, "_attn_implementation", None) == "sdpa"
        if not (fused and is_quicker(self.device, self.dtype)):
            yield False
            return
        try:
            model.set_attn_implementation("eager")
            yield True
        finally:
            model.set_attn_implementation("sdpa")

    def _possible_mask_forms(self) -> Iterator[MaskForm]:
        config = text_config(self.model)
        window, chunk = (
            found.pop() if len(found := layer_settings(config, name)) == 1 else None
            for name in ("sliding_window", "attention_chunk_size")
        )
        reach: dict[str, dict[str, int | None]] = {
            "full_attention": {},
            "sliding_attention": {"window": window},
            "chunked_attention": {"chunk": chunk},
        }
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds and kinds <= set(reach):
            yield lambda batch: {kind: self._mask(batch, **reach[kind]) for kind in kinds}
        if window:
            yield lambda batch: self._mask(batch, window=window)
        yield self._mask

    def _mask(self, batch: Batch, **reach: int | None) -> Tensor:
        ends, positions = batch.subtree_end.to(self.device), batch.position_ids.to(self.device)
        return additive_mask(visible(ends, positions, **reach), self.dtype)
