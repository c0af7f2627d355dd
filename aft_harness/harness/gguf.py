"""`steered-gguf`: GGUF files in this process, with boosters as control vectors.

Knows what lm-eval calls of a model type, and which of its arguments mean what to llama.cpp. How tokens are read stands
in `engine/llama.py` and `engine/sequences.py`; what must not happen, in `guarded.py`.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Self

from aft_harness.boosters import references
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.digests import digest
from aft_harness.engine import control_vectors
from aft_harness.engine.llama import Llama
from aft_harness.engine.scoring import OnScored, Request
from aft_harness.engine.sequences import COARSE_TOLERANCE, TOLERANCE, Sequences, Vectors
from aft_harness.harness import encoding, gguf_loading
from aft_harness.harness.gguf_base import GgufLM
from aft_harness.harness.gguf_tokenizer import COMPARED, GgufTokenizer
from aft_harness.harness.guarded import GuardedLM, check_scale
from aft_harness.versions import versions

logger = logging.getLogger(__name__)


class SteeredGgufLM(GuardedLM, GgufLM):
    """A GGUF file with a booster in its residual stream; without `vector=` it is the paired baseline.

    Attributes:
        variant: The variant that this object's methods evaluate; for others see `with_variant` and `score_variants`.
        base_model: Identity of the file, independent of its location.
    """

    model_type = "steered-gguf"

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        vector: references.VectorSpec | None = None,
        scale: float = 1.0,
        *,
        n_ctx: int | None = None,
        add_bos_token: bool | None = None,
        tokenizer: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        packing: bool | str = True,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """Loads the file, then checks that the booster fits it and that llama.cpp really adds it.

        Args:
            pretrained: A `.gguf` file.
            vector: The booster, in the syntax described in `references.py`.
            scale: Factor on the strength of all of `vector`.
            n_ctx: Positions of the longest request; None means those that the model was trained on.
            add_bos_token: Whether texts begin with the token `bos`; None means as the file says.
            tokenizer: A checkpoint whose tokenizer must make the same tokens.
            chat_template_args: What the chat template is given besides.
            max_gen_toks: Tokens of a text at most, where the task does not say.
            batch_size: Texts that are written beside each other, or `auto`; scoring does not depend on it.
            packing: `off` reads one request at a time.
            device: `cpu` keeps all layers there; otherwise a GPU is used if llama.cpp was built for one.
            **settings: See `gguf_loading.llama_settings`.

        Raises:
            AftError: The file or the booster cannot be used; the message is one line.
        """
        super().__init__()
        check_scale(scale)
        variant = BASELINE if vector is None else references.load(vector, scale)
        how = gguf_loading.llama_settings(settings, device)
        self.batch_size = gguf_loading.batch_size(batch_size)
        self.max_gen_toks = gguf_loading.positive("max_gen_toks", max_gen_toks)
        limit = None if n_ctx is None else gguf_loading.positive("n_ctx", n_ctx)
        self._packing = gguf_loading.switch("packing", packing)
        self.model = Llama(pretrained, how)
        self.max_length = limit or self.model.trained_length
        exact = self.model.weights == "F32"
        self.sequences = Sequences(
            self.model,
            sharing=self._packing and not self.model.recurrent,
            tolerance=TOLERANCE if exact else COARSE_TOLERANCE,
        )
        self.tokenizer = GgufTokenizer(self.model)
        self.add_bos_token, self.chat_template_args = add_bos_token, dict(chat_template_args or {})
        self.base_model: ModelIdentity = gguf_loading.identify(self.model)
        if tokenizer is not None:
            self.tokenizer.check_equal(str(tokenizer), add_bos_token)
        self._probe = self.tok_encode(COMPARED[0])[: self.max_length]
        gguf_loading.check(self.model, self._probe)
        self.start_guards()
        self._tried: set[str] = set()
        self._warned: set[str] = set()
        self.variant, self.steering = variant, self.steering_for(variant)

    def with_variant(self, variant: Variant) -> Self:
        """A copy of this object with another variant, sharing the loaded file.

        Raises:
            AftError: The booster does not fit the model.
        """
        other = copy.copy(self)
        other.variant, other.steering = variant, self.steering_for(variant)
        return other

    def steering_for(self, variant: Variant) -> Vectors | None:
        """What is added to the layers under a variant; None for nothing.

        Warns once per booster if it was made for another model, and tries once whether llama.cpp adds it.

        Raises:
            AftError: The booster does not fit the model, or llama.cpp cannot add it.
        """
        if variant.booster is None:
            return None
        variant.booster.check_fits(self.model.width, self.model.layers, self.base_model.name)
        vectors = control_vectors.vectors_of(variant)
        self.warn_of_other_model(variant)
        key = f"{variant.booster.sha256} {variant.strength}"
        if vectors is not None and key not in self._tried:
            control_vectors.check_steering(self.model, vectors, self._probe, variant.name)
            self._tried.add(key)
        return vectors

    def warn_of_other_model(self, variant: Variant) -> None:
        """Warns, once a booster, if it was made for a model of another depth.

        The weights of a file are not those of the checkpoint that the booster learned on: they are no measure.
        """
        assert variant.booster is not None
        base, ours = variant.booster.provenance.base_model, self.base_model
        if base is None or base.layers in (0, ours.layers) or variant.booster.sha256 in self._warned:
            return
        self._warned.add(variant.booster.sha256)
        logger.warning(
            "the booster was made for %s, which has %d layers; %s has %d; expect no gain",
            *(base.label, base.layers, ours.name, ours.layers),
        )

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
    ) -> list[list[tuple[float, bool]]]:
        """Scores requests under several variants, which take turns without loading the file again.

        Args:
            requests: From `encode`.
            variants: Variants to score; this object's own variant does not apply.
            on_scored: See `Sequences.loglikelihoods`.
            rows_a_pass: Is of no importance here.
            known: See `Sequences.loglikelihoods`.

        Returns:
            By variant and request: the loglikelihood, and whether the continuation is the greedy one.
        """
        steerings = [self.steering_for(variant) for variant in variants]
        return self.sequences.loglikelihoods(requests, steerings=steerings, on_scored=on_scored, known=known)

    def get_model_info(self) -> dict[str, Any]:
        """The model's entries in the results file, by lm-eval's names."""
        own = {"model_num_parameters": self.model.parameters, "model_dtype": self.weights_dtype}
        return {**own, "model_revision": "", "model_sha": "", **super().get_model_info()}

    @property
    def batch_sizes(self) -> dict[int, int]:
        """lm-eval's record of sizes that were found automatically."""
        return {}

    @property
    def device_type(self) -> str:
        """Type of the device that the model runs on."""
        return "gpu" if self.model.on_gpu else "cpu"

    @property
    def weights_dtype(self) -> str:
        """Type of the file's weights."""
        return self.model.weights

    @cached_property
    def settings(self) -> dict[str, str]:
        """What an answer depends on beside model, booster and request."""
        how = self.model.settings
        return {
            "flash_attn": self.model.flash_attn,
            "n_batch": str(how.n_batch),
            "repack": str(self.model.repack),
            "type_k": self.model.type_k,
            "type_v": self.model.type_v,
            "add_bos_token": str(self.add_bos_token),
            "chat_template": digest(self.tokenizer.chat_template)[:12],
            "chat_template_args": str(self.chat_template_args),
            "llama_cpp": self.model.version,
            "lm_eval": versions()["lm_eval"],
            "max_length": str(self.max_length),
            "max_gen_toks": str(self.max_gen_toks),
            "packing": str(self._packing),
            "tokenizer": self.tokenizer.identity,
        }
