"""Whether a booster is asked in the format that it was trained in.

Knows texts and what a provenance says of prompts; neither models nor tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lm_eval.api.instance import Instance

from aft_harness.boosters.variant import Variant

logger = logging.getLogger(__name__)


class PromptGuard:
    """Warns, once a booster, when only one of training and evaluation goes through the chat template.

    What was templated is remembered by its hash: requests do not say how their prompts were made.
    """

    def __init__(self) -> None:
        """Nothing is templated yet."""
        self._templated: set[int] = set()
        self._warned: set[str] = set()

    def templated(self, prompt: str) -> str:
        """Remembers a prompt that a chat template made, and returns it."""
        self._templated.add(hash(prompt))
        return prompt

    def check(self, variant: Variant, requests: Sequence[Instance]) -> None:
        """Logs the warning where it is due.

        Args:
            variant: What is asked.
            requests: With their prompts.
        """
        if variant.booster is None or variant.booster.sha256 in self._warned or not requests:
            return
        if requests[0].request_type == "loglikelihood_rolling":  # which has no prompt
            return
        trained = (variant.booster.provenance.prompting or {}).get("apply_chat_template")
        asked = hash(requests[0].args[0]) in self._templated
        if trained is None or bool(trained) == asked:
            return
        self._warned.add(variant.booster.sha256)
        formats = ("with", "without") if trained else ("without", "with")
        logger.warning(
            "%s was trained %s the chat template but is evaluated %s it; expect a smaller gain", variant.name, *formats
        )
