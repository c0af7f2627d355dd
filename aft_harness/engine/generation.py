"""When a text that is being generated is finished while others of its batch go on.

Knows tokens and the stop strings that end a text. lm-eval's own criterion ends a batch when one and the same string has
come in all of its texts: where one text ends with a string and another with the end-of-text token, all go on to the
longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = 2  # tokens by which a string may be longer when it was generated than when it is tokenised by itself


class StopStrings:
    """Finds whether one of some strings has come in a text.

    Special tokens are read as text, since `<|im_end|>` may be such a string while the text that is returned is without
    them. Nothing is remembered from step to step.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        """Prepares to look for the strings.

        Args:
            tokenizer: Of the model.
            strings: What ends a text.
        """
        self._tokenizer, self._strings = tokenizer, strings
        lengths = [len(tokenizer.encode(string, add_special_tokens=False)) for string in strings]
        self._lookback = max(lengths, default=0) + _MARGIN

    def ended(self, texts: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each text is at an end.

        Args:
            texts: Token ids that were generated, without those of the prompt.
        """
        if not self._strings:
            return [False] * len(texts)
        found = [
            self._in(tail) for tail in self._tokenizer.batch_decode([list(text[-self._lookback :]) for text in texts])
        ]
        for row, ended in enumerate(found):
            # Only what will be found in the whole text may end it: tokens may read otherwise from the middle.
            found[row] = ended and self._in(str(self._tokenizer.decode(list(texts[row]))))
        return found

    def _in(self, text: str) -> bool:
        return any(string in text for string in self._strings)


class PerTextStoppingCriteria:
    """Finds, for each text of a batch that is decoded greedily, whether one of the stop strings has come.

    What comes after such a string is cut off anyway: the texts stay the same. Which texts have ended is remembered by
    transformers.

    An element of a `StoppingCriteriaList` of transformers, which takes any callable: the base class there would double
    the time that this module takes to import.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str], prompt_length: int) -> None:
        """Prepares to look for the strings.

        Args:
            tokenizer: Of the model.
            stop_strings: What ends a text.
            prompt_length: Number of tokens of the prompts, padding included.
        """
        self._strings, self._prompt_length = StopStrings(tokenizer, stop_strings), prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each text is finished, bool [batch]."""
        found = self._strings.ended(input_ids[:, self._prompt_length :].tolist())
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)


def is_greedy(model: Any, settings: Mapping[str, Any]) -> bool:
    """Whether texts are decoded greedily, one token after the other.

    What is drawn depends on how many steps all texts before took, and which beam wins on when the search ends: such
    texts must not end each at its own time.

    Args:
        model: With its generation configuration.
        settings: For `generate`, by lm-eval's rule that a temperature of 0 is greedy.
    """
    beams = settings.get("num_beams") or getattr(getattr(model, "generation_config", None), "num_beams", None) or 1
    return settings.get("temperature", 0.0) == 0.0 and settings.get("do_sample") is not True and beams == 1


def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    context: Tensor,
    max_length: int,
    stop_strings: Sequence[str],
    settings: Mapping[str, Any],
) -> Tensor:
    """Continues prompts greedily, each until one of the stop strings has come, [batch, positions].

    Args:
        model: With `generate`.
        tokenizer: Of the model.
        context: Token ids of the prompts, padded on the left, [batch, positions].
        max_length: Of prompt and text, tokens.
        stop_strings: What ends a text.
        settings: Further ones for `generate`; a temperature of 0 is left out, since transformers wants none.
    """
    from transformers import StoppingCriteriaList

    criteria = PerTextStoppingCriteria(tokenizer, stop_strings, context.shape[1])
    tokens: Tensor = model.generate(
        input_ids=context,
        max_length=max_length,
        stopping_criteria=StoppingCriteriaList([criteria]),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **{**{name: value for name, value in settings.items() if name != "temperature"}, "do_sample": False},
    )
    return tokens


_HARMLESS = frozenset(
    {
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "top_h",
        "epsilon_cutoff",
        "eta_cutoff",
        "max_length",
        "max_new_tokens",
        "num_beams",
        "num_beam_groups",
        "early_stopping",
        "length_penalty",
        "diversity_penalty",
        "num_return_sequences",
        "use_cache",
        "bos_token_id",
        "pad_token_id",
        "eos_token_id",
        "transformers_version",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "remove_invalid_values",
        "cache_implementation",
        "cache_config",
    }
)
"""Settings of a generation configuration that do not change the likeliest token, nor a draw at a temperature."""


def plain_ends(model: Any) -> frozenset[int] | None:
    """The tokens that end a text, where a model's own configuration changes nothing else of what it writes.

    Returns:
        None where it does, by a penalty for repetitions, say.
    """
    configuration = getattr(model, "generation_config", None)
    if configuration is None:
        return frozenset()
    settings = {name: value for name, value in configuration.to_diff_dict().items() if not name.startswith("_")}
    if any(value is not None for name, value in settings.items() if name not in _HARMLESS):
        return None
    ends = configuration.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list | tuple) else [int(ends)])
