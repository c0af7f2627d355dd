"""The vocabulary of a GGUF file: texts made tokens by llama.cpp's own tokenizer, and back.

Knows the C interface of llama.cpp as far as texts go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from aft_harness.errors import ModelError


class Vocabulary:
    """What a loaded file says of tokens. It must not be used when the file is closed.

    Attributes:
        size: Number of tokens.
    """

    def __init__(self, library: Any, model: Any) -> None:
        """Looks it up.

        Args:
            library: The module `llama_cpp`.
            model: A pointer to the loaded file.
        """
        self._lib, self._vocab = library, library.llama_model_get_vocab(model)
        self.size = int(library.llama_vocab_n_tokens(self._vocab))

    def special(self, name: str) -> int | None:
        """A special token by llama.cpp's name of it, such as `bos`, `eos`, `eot`, `pad`; None where there is none."""
        token = int(getattr(self._lib, f"llama_vocab_{name}")(self._vocab))
        return token if token >= 0 else None

    @property
    def adds_bos(self) -> bool:
        """Whether texts begin with the token `bos`."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, without any that the file has added.

        Args:
            text: What is made tokens.
            special: Whether special tokens in the text, such as `<|im_end|>`, are such tokens.
        """
        data = text.encode("utf-8", errors="surrogatepass")
        room = len(data) + 16
        for _ in range(2):
            tokens = (self._lib.llama_token * room)()
            found = int(self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special))
            if found >= 0:
                return list(tokens[:found])
            room = -found
        raise ModelError(f"llama.cpp cannot tokenise a text of {len(text)} characters")

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special tokens are left out unless they are asked for."""
        array = (self._lib.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens) + 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            length = int(self._lib.llama_detokenize(self._vocab, array, len(tokens), buffer, room, False, special))
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            room = -length
        raise ModelError(f"llama.cpp cannot make a text of {len(tokens)} tokens")
