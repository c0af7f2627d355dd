"""The tokenizer and the chat template of a GGUF file, as lm-eval asks a tokenizer.

Knows what a file says of its special tokens, and chat templates. How a text becomes tokens is llama.cpp's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aft_harness.digests import digest
from aft_harness.engine.llama import Llama
from aft_harness.errors import ModelError
from aft_harness.text import reason

COMPARED = (
    "The child opens the door, looks around and sits down.",
    " a leading space",
    "a trailing space ",
    "two  spaces,   three",
    "lines\nand\n\nempty lines\n",
    "\ttabs\tand 1234567890 digits, 3.14",
    "Question: What's 12 * 7?\nAnswer:",
    "naïve café, Größe, 東京, 🙂 — “quotes”",
    "def f(x):\n    return x[0] != 'a'\n",
    "A",
    " A",
)
"""Texts that two tokenizers must agree on."""


class GgufTokenizer:
    """What lm-eval and this package ask of a tokenizer.

    Attributes:
        chat_template: Of the file; None where it has none.
    """

    def __init__(self, model: Llama) -> None:
        """Reads what the file says."""
        self._model = model
        self.chat_template = model.metadata("tokenizer.chat_template")
        self.bos_token_id = model.vocabulary.special("bos")
        self.eos_token_id = model.vocabulary.special("eos")
        self.pad_token_id = model.vocabulary.special("pad")
        self.bos_token, self.eos_token, self.pad_token = (
            None if token is None else model.vocabulary.detokenize([token], special=True)
            for token in (self.bos_token_id, self.eos_token_id, self.pad_token_id)
        )

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """The tokens of a text.

        Args:
            text: What is made tokens; special tokens in it are such tokens.
            add_special_tokens: Whether the token `bos` comes first; None means as the file says, and never twice.
        """
        if add_special_tokens is None:
            add_special_tokens = self._model.vocabulary.adds_bos and not (
                self.bos_token and text.startswith(self.bos_token)
            )
        tokens = self._model.vocabulary.tokenize(text) if text else []
        return [self.bos_token_id, *tokens] if add_special_tokens and self.bos_token_id is not None else tokens

    def decode(self, tokens: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        listed = [tokens] if isinstance(tokens, int) else list(tokens)
        return self._model.vocabulary.detokenize(listed, special=not skip_special_tokens) if listed else ""

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool, **further: Any
    ) -> str:
        """Messages as the file's chat template has them.

        Args:
            messages: With `role` and `content`.
            add_generation_prompt: Whether the text ends where an answer begins; otherwise the last message goes on.
            **further: What the template is given besides.

        Raises:
            ModelError: The file has no chat template.
            jinja2.TemplateError: The template refuses the messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.chat_template is None:
            raise ModelError(f"{self._model.path}: the file has no chat template; run without --apply_chat_template")
        special: dict[str, Any] = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        rendered: Any = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **{**special, **further},
        )
        return str(rendered[0][0])  # of each conversation its text, and which parts are answers

    @property
    def identity(self) -> str:
        """A digest of the tokens of some texts, and of the special ones."""
        special = [self.bos_token, self.eos_token, self._model.vocabulary.adds_bos]
        return digest([special, [self._model.vocabulary.tokenize(text) for text in COMPARED]])[:12]

    def check_equal(self, name: str, add_bos: bool | None = None) -> None:
        """Refuses a file whose tokenizer is another one than that of a checkpoint.

        Args:
            name: Folder or hub id of the checkpoint.
            add_bos: Whether texts begin with `bos` by the caller's wish; None means that this is compared, too.

        Raises:
            ModelError: They differ, or the checkpoint's cannot be loaded.
        """
        import transformers

        try:
            other = transformers.AutoTokenizer.from_pretrained(name)
        except Exception as error:  # libraries for all kinds of tokenizers raise all kinds of errors
            raise ModelError(f"tokenizer={name}: cannot be loaded ({type(error).__name__}: {reason(error)})") from None
        special = [text for text in (self.bos_token, self.eos_token) if text]
        for text in (*COMPARED, "".join(f"{each}text" for each in special)):
            ours, theirs = self._model.vocabulary.tokenize(text), list(other.encode(text, add_special_tokens=False))
            if ours != theirs:
                raise ModelError(
                    f"tokenizer={name}: makes other tokens of {text!r} ({theirs[:8]}) than {self._model.path.name} "
                    f"({ours[:8]}); the file was converted wrongly, or is of another model"
                )
        ours, theirs = self.encode("A", add_bos), list(other.encode("A", **_wish(add_bos)))
        if ours != theirs:
            raise ModelError(
                f"tokenizer={name}: begins a text with {theirs[:-1] or 'no special token'}, {self._model.path.name} "
                f"with {ours[:-1] or 'none'}; say which with add_bos_token=True or False"
            )


def _wish(add_bos: bool | None) -> dict[str, bool]:
    return {} if add_bos is None else {"add_special_tokens": add_bos}
