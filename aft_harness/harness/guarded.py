"""What every model type of aft_harness does besides answering: it warns, refuses and records.

Knows lm-eval's calls of a model type, the guards, and what a results file says. Knows no engine: how a model is loaded
and run is the model type's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook

import aft_harness
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import Variant, VariantRecord
from aft_harness.engine.scoring import Request
from aft_harness.errors import ReferenceSyntaxError
from aft_harness.harness import guards
from aft_harness.harness.identity import cache_identity
from aft_harness.harness.prompts import PromptGuard

if TYPE_CHECKING:
    _Base: Any = LM
else:
    _Base = object  # a mixin: the model type of lm-eval comes after it


class GuardedLM(_Base):
    """Goes before a model type of lm-eval among the bases of one of ours.

    Attributes:
        model_type: The name under which lm-eval knows the type.
        variant: What the object's methods evaluate.
        base_model: Identity of the model, independent of its location.
    """

    model_type: ClassVar[str]
    variant: Variant
    base_model: ModelIdentity

    def start_guards(self) -> None:
        """Makes the guards; nobody is warned yet. Copies of the object share them."""
        self._other_models, self.prompts = guards.OtherModelGuard(), PromptGuard()
        self._guards = (guards.TrainingDocumentGuard(), self.prompts)

    @abstractmethod
    def encode(self, context: str, continuation: str) -> Request:
        """Tokenises a request as `loglikelihood` does."""

    @property
    @abstractmethod
    def device_type(self) -> str:
        """Type of the device that the model runs on, such as `cpu`."""

    @property
    @abstractmethod
    def weights_dtype(self) -> str:
        """Type of the model's numbers, such as `torch.float32`."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What an answer depends on beside model, booster and request, by name."""

    def warn_of_other_model(self, variant: Variant) -> None:
        """Warns, once a booster, if it was made for another model."""
        self._other_models.check(variant, self.base_model)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the stock model type."""
        return self.prompts.templated(super().apply_chat_template(chat_history, add_generation_prompt))

    def guard(self, requests: Sequence[Instance]) -> None:
        """Emits the warnings that are due before an evaluation.

        Raises:
            TaskError: See `guards.check_letters`.
        """
        for guard in self._guards:
            guard.check(self.variant, requests)
        guards.check_letter_requests(requests, self.encode)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the stock model type; warns if the booster was trained on some of the documents."""
        self.guard(requests)
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        guards.refuse_non_finite(requests, [score for score, _ in results], self.variant, self.weights_dtype)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the stock model type; warns if the booster was trained on some of the documents."""
        self.guard(requests)
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        guards.refuse_non_finite(requests, scores, self.variant, self.weights_dtype)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the stock model type; warns if the booster was trained on some of the documents."""
        self.guard(requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """The model's entries in the results file: lm-eval's own, where there are some, and the variant that ran."""
        own = getattr(super(), "get_model_info", dict)
        return {**own(), "aft": self.describe(self.variant).to_json()}

    def describe(self, variant: Variant) -> VariantRecord:
        """The record of a variant on this model, as written to the results file."""
        return VariantRecord.of(variant, self.base_model, self.device_type, aft_harness.__version__)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accepts a `--use_cache` database only if the same model type, model and booster wrote it.

        Raises:
            CacheError: Another one wrote the database.
        """
        super().set_cache_hook(cache_hook)
        guards.guard_cache(cache_hook.dbdict, self.cache_identity(self.variant), self.model_type)

    def cache_identity(self, variant: Variant) -> str:
        """Everything that an answer under `variant` depends on except the request, as JSON."""
        settings = {"model_type": self.model_type, **self.settings}
        return cache_identity(self.base_model, self.weights_dtype, variant, settings)


def check_scale(scale: object) -> None:
    """Refuses a `scale=` that is not a number.

    Raises:
        ReferenceSyntaxError: It is none.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ReferenceSyntaxError(f"scale={scale!r} is not a number")
