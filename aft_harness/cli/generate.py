"""`aft generate`: what a model writes without and with boosters, side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.cli.options import model_options, opened_model
from aft_harness.cli.terminal import quiet
from aft_harness.cli.values import Number
from aft_harness.errors import FileError
from aft_harness.progress import ignore


@main.command("generate", context_settings=CONTEXT, short_help="Show what a model writes with each booster.")
@model_options
@click.option(
    "--vector", "vectors", multiple=True, metavar="V", help="A booster, as lm_eval's vector=; may be repeated."
)
@click.option("--file", "source", type=click.File(encoding="utf-8"), help="Read the prompt from a file; - is stdin.")
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message, through the chat template.")
@click.option("--system-instruction", help="System message in front of it; needs --chat.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Length of each text."
)
@click.option(
    "--temperature",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="Of sampling; 0 takes the likeliest token.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling, the same for every text.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
)
@click.argument("prompt", required=False)
def generate(
    *,
    model: dict[str, Any],
    vectors: tuple[str, ...],
    source: Any,
    chat: bool,
    system_instruction: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    form: str,
    prompt: str | None,
) -> None:
    """Continue PROMPT without a booster and with each of the given ones, so that the texts can be compared.

    The prompt comes from the argument, from --file, or from standard input.
    """
    if prompt is not None and source is not None:
        raise click.UsageError("PROMPT and --file cannot be used together")
    if system_instruction and not chat:
        raise click.UsageError("--system-instruction needs --chat")
    if prompt is None:
        prompt = _read(source or sys.stdin)
    with quiet():
        from aft_harness.boosters import references
        from aft_harness.boosters.variant import BASELINE, Variant, distinct
        from aft_harness.harness import texts

        variants = distinct([BASELINE, *(references.load(vector) for vector in vectors)])
        shown: list[Variant] = []

        def show(variant: Variant, piece: str) -> None:
            if not shown or shown[-1] is not variant:
                click.echo(f"{'' if not shown else chr(10) * 2}== {variant.name}")
                shown.append(variant)
            click.echo(_plain(piece), nl=False)

        with opened_model(model) as lm:
            begun = texts.chat_prompt(lm, prompt, system_instruction) if chat else prompt
            written = texts.write(
                lm,
                begun,
                variants,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                on_text=show if form == "text" else ignore,
            )
    if form == "json":
        for variant, text in zip(variants, written, strict=True):
            click.echo(json.dumps({"variant": variant.name, "strength": variant.strength, "text": text}))
    else:
        click.echo()


def _read(source: Any) -> str:
    try:
        text: str = source.read()
    except (OSError, UnicodeDecodeError) as error:
        name = Path(getattr(source, "name", "standard input")).name
        raise FileError(f"{name}: cannot be read as text ({type(error).__name__})") from None
    return text


def _plain(text: str) -> str:
    """Text of a model, which could otherwise drive the terminal; line breaks and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)
