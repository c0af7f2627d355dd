"""`steered-vllm`: lm-eval's vLLM model type over a checkpoint that has the booster in it.

Knows what lm-eval's `VLLM` calls and expects, and lets it run as it is: what it loads is an ordinary folder. Which
folder that is stands in `overlays.py`; what must not happen, in `harness/guarded.py`.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from aft_harness.boosters import references
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import BASELINE
from aft_harness.digests import digest
from aft_harness.engine.scoring import Request
from aft_harness.engine.skeleton import FAILURES
from aft_harness.errors import AftError, ExportError, ModelError
from aft_harness.harness.guarded import GuardedLM, check_scale
from aft_harness.harness.identity import tokenizer_identity
from aft_harness.publish.export.base import Base
from aft_harness.publish.export.identity import identity_of
from aft_harness.publish.overlays import overlay
from aft_harness.text import reason
from aft_harness.versions import versions

_MISSING = ""
try:
    from lm_eval.models.vllm_causallms import VLLM
except Exception as error:  # vLLM brings compiled parts, which raise whatever they like where they do not fit
    VLLM: Any = LM  # type: ignore[no-redef]
    if find_spec("vllm") is None:
        _MISSING = "vLLM is not installed; run: pip install 'aft-harness[vllm]' (on a CPU see docs/vllm.md)"
    elif isinstance(error, PackageNotFoundError):
        _MISSING = (
            "lm-eval looks for an installed package of the name vllm, and here vLLM is installed under another name; "
            "docs/vllm.md tells how to give it that name"
        )
    else:
        _MISSING = f"vLLM cannot be imported ({type(error).__name__}: {reason(error)})"

_SETTINGS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "max_length",
    "prefix_token_id",
    "think_end_token",
    "truncation_side",
)
"""Attributes of lm-eval's `VLLM` that change an answer."""

_NO_SETTINGS = ("model", "max_num_seqs", "gpu_memory_utilization")
"""Arguments of vLLM that change no answer, or that the identity of model and booster stand for."""

_PACKAGES = ("lm_eval", "transformers")


class SteeredVLLM(GuardedLM, VLLM):
    """lm-eval's `vllm` with the additional arguments `vector=` and `scale=`; without `vector=` it is that, unchanged.

    With a booster vLLM loads an overlay of the model: a folder of the user's cache with the model's own weights and
    the booster as biases (see `aft export checkpoint`).
    """

    model_type = "steered-vllm"

    def __init__(
        self, pretrained: str, vector: references.VectorSpec | None = None, scale: float = 1.0, **kwargs: Any
    ) -> None:
        """Checks that the booster fits the model and can be in its checkpoint; then vLLM loads that.

        Args:
            pretrained: A hub id or a folder.
            vector: The booster, in the syntax described in `references.py`.
            scale: Factor on the strength of all of `vector`.
            **kwargs: Every other argument of `vllm`.

        Raises:
            AftError: The booster or the model cannot be used, or vLLM is not installed; the message is one line.
        """
        if _MISSING:
            raise ModelError(_MISSING)
        check_scale(scale)
        self.variant = BASELINE if vector is None else references.load(vector, scale)
        self._pretrained = str(pretrained)
        self._parameters: int | None = None
        self.start_guards()
        folder = self._folder(kwargs)
        try:
            super().__init__(pretrained=folder, **kwargs)
        except AftError:
            raise
        except FAILURES as error:
            raise ModelError(
                f"vLLM cannot load {self._pretrained} ({type(error).__name__}: {reason(error)})"
            ) from error

    def _folder(self, kwargs: dict[str, Any]) -> str:
        """What vLLM loads; `kwargs` then say of the tokenizer what they said before."""
        revision, booster = kwargs.get("revision"), self.variant.booster
        try:
            base = Base.of(self._pretrained, revision)
            self.base_model, parameters = identity_of(base)
        except ModelError:
            if booster is not None:
                raise
            # What vLLM can load may well be beyond us: weights in other files, code of the model's own.
            self.base_model = ModelIdentity(name=Path(self._pretrained).name)
            return self._pretrained
        self._parameters = parameters
        self.warn_of_other_model(self.variant)
        if booster is None or booster.scaled(self.variant.strength).is_zero:
            return self._pretrained
        booster.check_fits(self.base_model.hidden_size, self.base_model.layers, base.label)
        try:
            folder = str(overlay(base, self.base_model, self.variant))
        except ExportError as error:
            raise ExportError(_with_way_out(str(error))) from None
        kwargs["revision"] = None  # the folder is of that revision
        if kwargs.get("tokenizer_revision") and not kwargs.get("tokenizer"):
            kwargs["tokenizer"] = self._pretrained
        return folder

    def encode(self, context: str, continuation: str) -> Request:
        """Tokenises a request as `loglikelihood` does; the context is not empty."""
        first, second = self._encode_pair(context, continuation)
        return Request(tuple(first), tuple(second))

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer, the same with a booster and without."""
        return str(self.model_args["tokenizer"] or self._pretrained).replace("/", "__")

    @property
    def device_type(self) -> str:
        """Type of the device that the model runs on."""
        from vllm.platforms import current_platform

        return str(current_platform.device_type)

    @property
    def weights_dtype(self) -> str:
        """Type of the model's numbers."""
        # Of several replicas each is made anew for every call, and none can be asked.
        return str(self.model.llm_engine.model_config.dtype if hasattr(self, "model") else self.model_args["dtype"])

    @cached_property
    def settings(self) -> dict[str, str]:
        """What an answer depends on beside model, booster and request."""
        given = {name: value for name, value in self.model_args.items() if name not in _NO_SETTINGS}
        engine = {name: str(value) for name, value in given.items() if value is not None}
        found = versions()
        return {
            **{name: str(getattr(self, name, None)) for name in _SETTINGS},
            **{name: found[name] for name in _PACKAGES},
            "chat_template": digest(self.hf_chat_template)[:12],
            "vllm": version("vllm"),
            "engine": json.dumps(engine, sort_keys=True),
            "lora": str(self.lora_request),
            "tokenizer": tokenizer_identity(self.tokenizer),
        }

    def get_model_info(self) -> dict[str, Any]:
        """The model's entries in the results file: those that `hf` writes, and the variant that ran."""
        facts = {"model_num_parameters": self._parameters, "model_dtype": self.weights_dtype}
        return {**facts, "model_revision": self.base_model.revision or "", **super().get_model_info()}


def _with_way_out(message: str) -> str:
    return message if "steered-hf" in message else f"{message}; `--model steered-hf` runs it as it is"
