"""Generation requests of lm-eval for a GGUF file: settings, stop strings, the next token.

Knows what a task may ask for and what lm-eval makes of a text. How tokens are read is the engine's work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor

from aft_harness.engine.writing import Choose, write
from aft_harness.errors import ModelError, TaskError

if TYPE_CHECKING:
    from aft_harness.harness.gguf_base import GgufLM

logger = logging.getLogger(__name__)

_SAMPLING = ("top_k", "top_p", "min_p")
_MARGIN = 2  # tokens by which a string may be longer when it was generated than when it is tokenised by itself


def generated(
    lm: GgufLM,
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    beside: int,
    on_text: Callable[[int, str], None],
) -> None:
    """Writes texts after prompts, all with the same settings.

    Args:
        lm: The file and how it is steered.
        prompts: What is continued.
        settings: `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`.
        beside: Texts that are written beside each other.
        on_text: Called with the index of a prompt and its text.

    Raises:
        TaskError: A setting that this model type does not have.
        ModelError: The text would leave no room for a prompt.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    until = handle_stop_sequences(asked.pop("until", None), eos=eos)
    most_new = int(asked.pop("max_gen_toks"))
    choose = _chooser(asked)
    room = lm.max_length - most_new
    if room < 1:
        raise ModelError(
            f"texts of up to {most_new} tokens leave no room for a prompt in a context of {lm.max_length}; use a "
            "larger n_ctx, or --gen_kwargs max_gen_toks=N"
        )
    encoded = [lm.tok_encode(prompt) or [lm.prefix_token_id] for prompt in prompts]
    if too_long := sum(len(tokens) > room for tokens in encoded):
        logger.warning("left-truncated %d of %d prompts to %d tokens", too_long, len(encoded), room)
    encoded = [tokens[-room:] for tokens in encoded]
    stop = [string for string in until if string]
    lookback = max((len(lm.model.vocabulary.tokenize(string)) for string in stop), default=0) + _MARGIN

    def found(tokens: Sequence[int]) -> bool:
        text = lm.tok_decode(tokens, skip_special_tokens=False)
        return any(string in text for string in stop)

    def ended(tokens: Sequence[int]) -> bool:
        # Only what will be found in the whole text may end it: tokens may read otherwise from the middle.
        return lm.model.vocabulary.ends(tokens[-1]) or (found(tokens[-lookback:]) and found(tokens))

    def record(index: int, tokens: list[int]) -> None:
        on_text(index, postprocess_generated_text(lm.tok_decode(tokens), until, None))

    write(
        lm.sequences,
        encoded,
        most_new,
        steering=lm.steering,
        beside=beside,
        choose=choose,
        ended=ended,
        on_written=record,
    )


def _chooser(settings: Mapping[str, Any]) -> Choose:
    """How the next token is chosen.

    Raises:
        TaskError: A setting that is unknown here.
    """
    rest = {name: value for name, value in settings.items() if value is not None}
    sampled = bool(rest.pop("do_sample", False))
    temperature = float(rest.pop("temperature", 1.0 if sampled else 0.0))
    narrowed = {name: rest.pop(name) for name in _SAMPLING if name in rest}
    rest.pop("use_cache", None)
    if rest.get("num_beams") == 1:
        del rest["num_beams"]
    if rest:
        raise TaskError(
            f"steered-gguf has no generation setting {', '.join(sorted(rest))}; it has {', '.join(_SAMPLING)}"
        )
    if not sampled or temperature == 0.0:
        return lambda logits: logits.argmax(dim=-1)

    def choose(logits: Tensor) -> Tensor:
        probabilities = _narrowed((logits / temperature).softmax(dim=-1), **narrowed)
        return torch.multinomial(probabilities, 1).flatten()

    return choose


def _narrowed(probabilities: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Probabilities without unlikely tokens, as transformers leaves them out: `top_k`, `top_p`, `min_p`."""
    ordered, places = probabilities.sort(dim=-1, descending=True)
    if top_k > 0:
        ordered[:, top_k:] = 0.0
    ordered /= ordered.sum(dim=-1, keepdim=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0.0
    ordered[ordered < min_p * ordered[:, :1]] = 0.0
    return torch.zeros_like(probabilities).scatter(1, places, ordered)
