"""`steered-hf`: lm-eval's Hugging Face model type with a booster in its residual stream.

Knows what lm-eval's `HFLM` calls and expects. What a booster is and how it is applied stands in `boosters/` and
`engine/`; what must not happen, in `guarded.py`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Self

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from aft_harness.boosters import references
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine import generation
from aft_harness.engine.continuous import Writer
from aft_harness.engine.decoder import check_causal, decoder_layers, input_device
from aft_harness.engine.identity import identify
from aft_harness.engine.part import WHOLE, Part
from aft_harness.engine.processes import Processes
from aft_harness.engine.scoring import Engine, OnScored, Request
from aft_harness.engine.steering import Steering
from aft_harness.errors import ModelError
from aft_harness.harness import encoding, generation_requests
from aft_harness.harness.guarded import check_scale
from aft_harness.harness.identity import answer_settings
from aft_harness.harness.loading import load_as_hf, shown
from aft_harness.harness.sharing import SharedLM


class SteeredHFLM(SharedLM, HFLM):
    """lm-eval's `hf` with the additional arguments `vector=` and `scale=`; without `vector=` it is the paired baseline.

    The booster is attached only during a forward pass or a generation, so a model object that the caller passed in
    stays unchanged.

    Attributes:
        variant: The variant that this object's methods evaluate; for others see `with_variant` and `score_variants`.
        base_model: Identity of the model, independent of its location.
        engine: Runs the model.
        writer: Writes texts with it.
    """

    model_type = "steered-hf"

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel,
        vector: references.VectorSpec | None = None,
        scale: float = 1.0,
        layers_path: str | None = None,
        packing: bool | str = True,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads the model as `hf` does, then checks that the booster fits it.

        Args:
            pretrained: A hub id, a folder, or a loaded model.
            vector: The booster, in the syntax described in `references.py`.
            scale: Factor on the strength of all of `vector`.
            layers_path: Dotted name of the decoder layers, for models whose layers are not found automatically.
            packing: `off` scores each request in its own row with lm-eval's code.
            device: As for `hf`; None means a GPU if there is one.
            **kwargs: Every other argument of `hf`.

        Raises:
            AftError: The booster or the model cannot be used; the message is one line.
        """
        check_scale(scale)
        # Before the model: a wrong booster should not cost the load of gigabytes.
        variant = BASELINE if vector is None else references.load(vector, scale)
        self.packing = _switch("packing", packing)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        load_as_hf(super().__init__, pretrained, None if layers_path else variant.booster, device=device, **kwargs)
        if self.backend != "causal":
            raise ModelError(f"{shown(pretrained)} is not a causal language model but {self.backend}")
        check_causal(self.model)
        # Processes of tensor parallelism are one model, and a loaded model belongs to whoever loaded it.
        if isinstance(pretrained, str) and kwargs.get("tp_plan") is None:
            self.join(Processes.present())
        if self.device.type == "meta":  # offloaded: where its first weight lies is not where it runs
            self._device = input_device(self.model)
        self.layers_path = layers_path
        self.engine = Engine(self.model, decoder_layers(self.model, layers_path), self.device, packed=self.packing)
        self.writer = Writer(self.engine)
        self.base_model: ModelIdentity = identify(self.model, pretrained if isinstance(pretrained, str) else None)
        self.start_guards()
        self.variant, self._steering = variant, self.steering_for(variant)

    def with_variant(self, variant: Variant) -> Self:
        """A copy of this object with another variant, sharing weights, tokenizer and engine.

        Raises:
            BoosterError: The booster does not fit the model.
        """
        other = copy.copy(self)
        other.variant, other._steering = variant, self.steering_for(variant)
        return other

    def steering_for(self, variant: Variant) -> Steering | None:
        """The steering of this model by a variant, after checking that it fits; None for the baseline.

        Warns once per booster if it was made for another model.

        Raises:
            BoosterError: The booster does not fit the model.
        """
        if variant.booster is None:
            return None
        steering = Steering(self.model, variant.booster, variant.strength, layers_path=self.layers_path)
        self.warn_of_other_model(variant)
        return steering

    def encode(self, context: str, continuation: str) -> Request:
        """Tokenises a request as lm-eval's `loglikelihood` does, left-truncated to the model's length.

        Raises:
            ModelError: The continuation has no tokens, or more than the model has positions.
        """
        return encoding.encode(self, context, continuation)

    def score_variants(
        self,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        *,
        on_scored: OnScored = lambda members, results: None,
        rows_a_pass: int | None = None,
        known: Collection[int] = (),
        part: Part = WHOLE,
    ) -> list[list[tuple[float, bool]]]:
        """Scores requests under several variants at once, within the memory budget that the batch size implies.

        Args:
            requests: From `encode`.
            variants: Variants to score; this object's own variant does not apply.
            on_scored: See `Engine.loglikelihoods`.
            rows_a_pass: The batch size that `--batch_size auto` would find, if the caller knows it.
            known: See `Engine.loglikelihoods`.
            part: See `Engine.loglikelihoods`.

        Returns:
            By variant and request: the loglikelihood, and whether the continuation is the greedy one.
        """
        steerings = [self.steering_for(variant) for variant in variants]
        return self._score(requests, steerings, on_scored, rows_a_pass, known, part)

    def _score(
        self,
        requests: Sequence[Request],
        steerings: Sequence[Steering | None],
        on_scored: OnScored,
        rows_a_pass: int | None,
        known: Collection[int] = (),
        part: Part = WHOLE,
    ) -> list[list[tuple[float, bool]]]:
        longest = max(requests, key=lambda request: len(request.inputs))
        if self.batch_size != "auto":
            rows_a_pass = int(self.batch_size)
        elif rows_a_pass is None:
            detected = self._detect_batch_size([("", list(longest.context), list(longest.continuation))])
            rows_a_pass = min(self.processes.gathered(int(detected)))
        with self._autocast():
            return self.engine.loglikelihoods(
                requests,
                len(longest.inputs) * rows_a_pass,
                steerings=steerings,
                softmax_dtype=self.softmax_dtype,
                on_scored=on_scored,
                known=known,
                part=part,
            )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Scores tokenised requests in packed rows; models that do not take them go through lm-eval's own code."""
        hidden = disable_tqdm or bool(os.environ.get("TQDM_DISABLE"))  # which lm-eval's own bars overrule
        if not requests or not (self.engine.packed or self.processes.count > 1):
            return super()._loglikelihood_tokens(requests, disable_tqdm=hidden, override_bs=override_bs)
        encoded = [
            encoding.request(context, continuation, self.max_length, text) for text, context, continuation in requests
        ]
        bar = tqdm(
            total=len(requests), disable=hidden or self.processes.rank != 0, desc="Running loglikelihood requests"
        )

        scored: dict[int, tuple[float, bool]] = {}

        def record(members: Sequence[int], results: list[list[tuple[float, bool]]]) -> None:
            for member, result in zip(members, results[0], strict=True):
                scored[member] = result
                if (text := requests[member][0]) is not None:  # rolling windows are cached by their caller
                    self.cache_hook.add_partial("loglikelihood", text, result)
            bar.update(len(members))

        with bar:
            self._score(encoded, [self._steering], record, override_bs, part=self.processes.part)
            scored |= self.processes.merged(scored)
            if len(scored) < len(requests):  # laid out in another way by another process
                self._score(encoded, [self._steering], record, override_bs, known=list(scored))
        return [scored[place] for place in range(len(requests))]

    def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._steering or nullcontext():
            return super()._model_call(*args, **kwargs)

    def written(self, requests: list[Instance], hidden: bool) -> list[str]:
        """As `hf`; texts that are decoded greedily are written side by side, see `engine/continuous.py`."""
        with self.steered():
            groups = generation_requests.side_by_side(self, requests) if self.packing else []
        rest = sorted(set(range(len(requests))) - {place for group in groups for place in group.places})
        texts: dict[int, str] = {}
        if rest:
            texts |= zip(rest, HFLM.generate_until(self, [requests[place] for place in rest], hidden), strict=True)
        count = len(requests) - len(rest)
        bar = tqdm(total=count, disable=hidden or not count, desc="Running generate_until requests")

        def record(place: int, text: str) -> None:
            self.cache_hook.add_partial("generate_until", requests[place].args, text)
            texts[place] = text
            bar.update(1)

        with bar, self.steered():
            for group in groups:
                group.write(self, record)
        return [texts[place] for place in range(len(requests))]

    def rows_at_once(self) -> int:
        """The batch size; where it is to be found automatically, it is found."""
        return int(self.batch_size if self.batch_size != "auto" else self._detect_batch_size())

    @contextmanager
    def steered(self) -> Iterator[None]:
        """In this block the model runs as this object's methods run it: steered, and in its precision."""
        with self._steering or nullcontext(), self._autocast():
            yield

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """As `hf`; greedily, each text of a batch ends at its own stop string, see `generation.greedy`."""
        with self._steering or nullcontext(), self._autocast():
            if generation.is_greedy(self.model, settings):
                return generation.greedy(self.model, self.tokenizer, context, max_length, stop, settings)
            return super()._model_generate(context, max_length, stop, **settings)

    def _autocast(self) -> torch.autocast:
        enabled = self.mixed_precision_dtype is not None
        return torch.autocast(self.device.type, dtype=self.mixed_precision_dtype, enabled=enabled)

    @property
    def device_type(self) -> str:
        """Type of the device that the model runs on."""
        return str(self.device.type)

    @property
    def weights_dtype(self) -> str:
        """Type of the model's numbers."""
        return str(self.model.dtype)

    @cached_property
    def settings(self) -> dict[str, str]:
        """What an answer depends on beside model, booster and request."""
        return answer_settings(self)


def _switch(name: str, value: bool | str) -> bool:
    if value in (True, "on", "true", "True"):
        return True
    if value in (False, "off", "false", "False"):
        return False
    raise ModelError(f"{name}={value}: expected on or off")
