"""lm-eval's generation requests, as prompts that the engine continues side by side.

Knows what a task may ask for and what lm-eval makes of a text. Requests that ask for anything but the likeliest tokens,
and models that the engine does not fit, are left to lm-eval's own code.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from aft_harness.engine.generation import StopStrings, is_greedy, plain_ends
from aft_harness.engine.text_batch import Manner, Prompt, Written
from aft_harness.errors import TaskError

if TYPE_CHECKING:
    from aft_harness.harness.model import SteeredHFLM

_OF_NO_EFFECT = frozenset(
    {
        "until",
        "max_gen_toks",
        "max_new_tokens",
        "max_tokens",
        "max_completion_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "use_cache",
        "num_beams",
    }
)
"""Settings that say when a text ends, and those that greedy decoding does not look at."""


class Asked:
    """What a request's settings say, as lm-eval reads them.

    Attributes:
        until: What ends a text and is cut off.
        limit: Tokens of a text at most.
        settings: The further ones.
    """

    def __init__(self, lm: SteeredHFLM, settings: Mapping[str, Any]) -> None:
        """Reads the settings of a request."""
        asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
        eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        self.until: list[str] = handle_stop_sequences(asked.pop("until", None), eos=eos)
        self.limit = int(asked.pop("max_gen_toks"))
        self.settings = asked

    def manner(self, lm: SteeredHFLM, temperature: float = 0.0) -> Manner:
        """How texts are written and when they end."""
        strings = [string for string in self.until if string]
        return Manner(temperature, plain_ends(lm.model) or frozenset(), StopStrings(lm.tokenizer, strings).ended)

    def text(self, lm: SteeredHFLM, tokens: Sequence[int]) -> str:
        """What lm-eval makes of tokens that were written."""
        listed, thought = list(tokens), lm.think_end_token
        if isinstance(thought, int):
            if thought in listed:
                listed = listed[len(listed) - listed[::-1].index(thought) :]
            text = str(lm.tok_decode(listed)).lstrip()
        else:
            text = str(lm.tok_decode(listed))
        end = thought if isinstance(thought, str) else None
        return str(postprocess_generated_text(generation=text, stop=self.until, think_end_token=end))


def prompt_tokens(lm: SteeredHFLM, context: str, limit: int) -> tuple[int, ...]:
    """A prompt's tokens as `hf` reads them: left-truncated to what leaves room for the text."""
    encoded, _ = lm.tok_batch_encode([context], left_truncate_len=lm.max_length - limit, truncation=lm.truncation)
    return tuple(encoded[0].tolist())


def prompt_of(lm: SteeredHFLM, request: Instance) -> tuple[int, ...]:
    """The tokens of a request's prompt.

    Raises:
        TaskError: There are none, or the texts that are asked for leave no room for them.
    """
    context, settings = request.args
    limit = Asked(lm, settings).limit
    if not 0 < limit < lm.max_length:
        raise TaskError(
            f"task {request.task_name}: texts of {limit} tokens leave no room for a prompt in {lm.max_length} positions"
        )
    tokens = prompt_tokens(lm, context, limit) if context else ()
    if not tokens:
        raise TaskError(f"task {request.task_name}: a prompt without tokens cannot be continued")
    return tokens


@dataclass(frozen=True)
class Group:
    """Requests with the same settings, which are answered together.

    Attributes:
        places: Of the requests among all.
        asked: What their settings say.
        prompts: What is continued.
    """

    places: tuple[int, ...]
    asked: Asked
    prompts: tuple[Prompt, ...]

    def write(self, lm: SteeredHFLM, on_text: Callable[[int, str], None]) -> None:
        """Answers the requests under whatever steering is in force.

        Args:
            lm: The model.
            on_text: Called with the place of a request and its text, as soon as that is finished.
        """

        def record(index: int, sample: int, written: Written) -> None:
            on_text(self.places[index], self.asked.text(lm, written.tokens))

        lm.writer.write(self.prompts, self.asked.manner(lm), lm.rows_at_once(), record)


def side_by_side(lm: SteeredHFLM, requests: Sequence[Instance]) -> list[Group]:
    """The requests that the engine answers; all others are for lm-eval's own code."""
    if plain_ends(lm.model) is None:
        return []
    places: dict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        context, settings = request.args
        greedy = is_greedy(lm.model, normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
        if context and greedy and settings.keys() <= _OF_NO_EFFECT:
            places[json.dumps(settings, sort_keys=True, default=str)].append(place)
    groups = []
    for members in places.values():
        asked = Asked(lm, requests[members[0]].args[1])
        if not 0 < asked.limit < lm.max_length:
            continue
        prompts = [Prompt(prompt_tokens(lm, requests[place].args[0], asked.limit), asked.limit) for place in members]
        if all(prompt.tokens for prompt in prompts) and lm.writer.writes(prompts):
            groups.append(Group(tuple(members), asked, tuple(prompts)))
    return groups
