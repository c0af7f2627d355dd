"""A GGUF file as lm-eval asks a model: the calls of its `TemplateLM`, answered by llama.cpp.

Knows lm-eval's requests. How tokens are read stands in `engine/sequences.py` and `engine/writing.py`. Knows no guards.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from aft_harness.engine.llama import Llama
from aft_harness.engine.sequences import Sequences, Vectors
from aft_harness.errors import ModelError
from aft_harness.harness import encoding
from aft_harness.harness.gguf_generation import generated
from aft_harness.harness.gguf_tokenizer import GgufTokenizer

logger = logging.getLogger(__name__)

_AUTOMATIC = 16
"""Texts that are written beside each other where the batch size is `auto`."""


class GgufLM(TemplateLM):
    """A GGUF file as lm-eval asks a model: what `steered-gguf` is without its guards.

    Attributes:
        model: llama.cpp with the file.
        sequences: Reads tokens with it.
        tokenizer: Of the file.
        batch_size: Texts that are written beside each other, or `auto`.
    """

    model: Llama
    sequences: Sequences
    tokenizer: GgufTokenizer
    steering: Vectors | None = None
    add_bos_token: bool | None = None
    chat_template_args: dict[str, Any]
    batch_size: int | str = 1
    max_length: int
    max_gen_toks: int = 256

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.eos_token_id
        return self.prefix_token_id if token is None else token

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text without a context."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ModelError(f"{self.model.path}: has neither a token that begins a text nor one that ends it")

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer, the same for every file that has the same one."""
        return f"gguf-{self.tokenizer.identity}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; see `GgufTokenizer.encode`."""
        if add_special_tokens is None and self.add_bos_token is not None:
            begun = self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token)
            add_special_tokens = self.add_bos_token and not begun
        return self.tokenizer.encode(string, add_special_tokens)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As `hf`: a template that refuses the system's message is tried without it."""
        try:
            return self.tokenizer.apply_chat_template(chat_history, add_generation_prompt, **self.chat_template_args)
        except jinja2.TemplateError:
            logger.warning("the chat template refuses these messages; trying without the system's")
            rest = [message for message in chat_history if message["role"] != "system"]
            return self.tokenizer.apply_chat_template(rest, add_generation_prompt, **self.chat_template_args)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores tokenised requests, shared prefixes once."""
        encoded = [encoding.request(first, second, self.max_length, text) for text, first, second in requests]
        hidden = disable_tqdm or bool(os.environ.get("TQDM_DISABLE"))
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as bar:

            def record(members: Sequence[int], results: list[list[tuple[float, bool]]]) -> None:
                for member, result in zip(members, results[0], strict=True):
                    if (text := requests[member][0]) is not None:  # rolling windows are cached by their caller
                        self.cache_hook.add_partial("loglikelihood", text, result)
                bar.update(len(members))

            (results,) = self.sequences.loglikelihoods(encoded, steerings=[self.steering], on_scored=record)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Loglikelihoods of whole texts, in windows as `hf` makes them."""
        windows: list[Any] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for window in map(make_disjoint_window, found):
                windows.append((None, *window))
                owners.append(place)
        scores = [0.0] * len(requests)
        for place, (score, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            scores[place] += score
        for request, total in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts after prompts, each up to its own stop string."""
        hidden = disable_tqdm or bool(os.environ.get("TQDM_DISABLE"))
        beside = _AUTOMATIC if self.batch_size == "auto" else int(self.batch_size)
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[repr(request.args[1])].append(place)
        with tqdm(total=len(requests), disable=hidden, desc="Running generate_until requests") as bar:

            def record(place: int, text: str) -> None:
                texts[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
                bar.update(1)

            for places in alike.values():
                settings = requests[places[0]].args[1]
                prompts = [requests[place].args[0] for place in places]
                generated(self, prompts, settings, beside, lambda index, text: record(places[index], text))  # noqa: B023
        return texts
