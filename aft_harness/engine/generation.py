"""When a text is done while others of its batch go on.

Knows tokens and the strings that end a text. lm-eval's own criterion ends a batch when one and the same string has come
in all of its texts: where one text ends with a string and another with the end-of-text token, all go on to the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

_MARGIN = 2  # tokens by which a string may be longer when it was written than when it is tokenised by itself


class TextsDone(transformers.StoppingCriteria):
    """Tells for each text of a batch whether one of the strings that end it has come.

    What comes after such a string is cut off anyway: the texts stay the same.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        decode: Callable[[list[int]], str],
        strings: Sequence[str],
        start: int,
    ) -> None:
        """Starts with no text done.

        Args:
            tokenizer: Of the model.
            decode: Makes of tokens the text that will be cut at the strings.
            strings: What ends a text.
            start: Number of tokens of the prompts, padding included.
        """
        self._tokenizer, self._decode, self._strings, self._start = tokenizer, decode, strings, start
        lengths = [len(tokenizer.encode(string, add_special_tokens=False)) for string in strings]
        self._lookback = max(lengths, default=0) + _MARGIN
        self._done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each text is done, bool [batch]."""
        if self._done is None:
            self._done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        written = input_ids[:, self._start :]
        tails = self._tokenizer.batch_decode(written[:, -self._lookback :])
        for row, tail in enumerate(tails):
            # Only what will be found in the whole text may end it: tokens may read otherwise from the middle.
            if not self._done[row] and self._found(tail) and self._found(self._decode(written[row].tolist())):
                self._done[row] = True
        return self._done

    def _found(self, text: str) -> bool:
        return any(string in text for string in self._strings)
