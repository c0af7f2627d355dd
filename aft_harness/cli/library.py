"""`aft list`, `pull`, `push` and `verify`: boosters that have a name, and boosters on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness.cli.app import CONTEXT, main, note, option
from aft_harness.cli.options import MODEL, collected, model_arguments, prompt_format, prompt_options
from aft_harness.cli.terminal import counting_bar, lines, quiet
from aft_harness.cli.values import BATCH_SIZE
from aft_harness.errors import ReferenceSyntaxError
from aft_harness.text import printable

if TYPE_CHECKING:
    from aft_harness.publish.library.publication import Publication


_recorded_model_options = collected(
    "model",
    {
        **MODEL,
        "model": click.option("--model", help="Hub id or folder of the model.  [default: the one that is recorded]"),
        "revision": click.option("--revision", help="Branch, tag or commit on the hub.  [default: as recorded]"),
        "dtype": click.option("--dtype", help="float32, bfloat16, float16, auto.  [default: as recorded]"),
    },
)
"""Which model, where a booster records one; values that are not given are None."""


def _quiet_hub() -> None:
    """No bars and notices of huggingface_hub, whose files here are small."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


@main.command("list", context_settings=CONTEXT, short_help="List the boosters that have a name.")
@click.option("--hub", is_flag=True, help="List boosters on the Hugging Face Hub instead.")
@click.option("--search", metavar="TEXT", help="Only names that contain this text.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Boosters of the hub at most.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with origin and SHA-256.")
def list_(hub: bool, search: str | None, limit: int, as_json: bool) -> None:
    """List the boosters that came with aft_harness and those that were pulled.

    The gain is that on the first task that the booster was trained on; a star marks a significant one. `vector=NAME`
    uses a booster.
    """
    _quiet_hub()
    from aft_harness.publish.library import listing

    found = list(listing.remote(search, limit) if hub else listing.local())
    if search and not hub:
        found = [each for each in found if search.lower() in each.name]
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    elif found:
        click.echo(listing.render(found))
    else:
        note("no boosters found" if search or hub else "no boosters yet; `aft pull hf://owner/repo` fetches one")


@main.command("pull", context_settings=CONTEXT, short_help="Fetch a booster from the Hugging Face Hub.")
@click.argument("source", metavar="SOURCE")
@click.option("--name", help="Name in the library.  [default: owner/repo]")
@click.option("--overwrite", is_flag=True, help="Replace another booster of this name.")
def pull(source: str, name: str | None, overwrite: bool) -> None:
    """Fetch a booster from the Hugging Face Hub, so that vector=NAME finds it.

    SOURCE is hf://owner/repo[/file.safetensors][@revision], owner/repo, or the name of a booster that was pulled
    before. A file that is not the booster of its repository's card is refused.
    """
    _quiet_hub()
    from aft_harness.boosters.catalogue import check_name
    from aft_harness.publish.library.pull import pull as pulled

    if name is not None:
        with option("--name"):
            check_name(name)
    with option("SOURCE"):
        done = pulled(source, name=name, overwrite=overwrite)
    where = f"{done.address} (commit {done.commit[:7]})" if done.commit and done.address else "came with aft_harness"
    found = [
        ("name", done.name),
        ("from", where),
        ("sha256", done.booster.sha256),
        ("size", f"{done.size:,} bytes"),
        ("library", "updated" if done.changed else "already up to date"),
        ("use", f"vector={done.name}"),
    ]
    click.echo("\n".join(lines([(key, printable(value)) for key, value in found])))


@main.command("push", context_settings=CONTEXT, short_help="Publish a booster on the Hugging Face Hub, with a card.")
@click.argument("vector")
@click.option("--to", "repo", required=True, metavar="OWNER/REPO", help="Repository; created if it does not exist.")
@click.option(
    "--leaderboard",
    "leaderboards",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV file with results: of `aft evaluate --csv` or `aft leaderboard`. May be repeated.",
)
@click.option("--file", metavar="NAME.safetensors", help="Name of the booster file.  [default: VECTOR's]")
@click.option("--base-model", metavar="ID", help="Hub id of the base model.  [default: the recorded one]")
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; created if it does not exist.")
@click.option("--dry-run", is_flag=True, help="Print the card, and push nothing.")
def push(
    vector: str,
    repo: str,
    leaderboards: tuple[Path, ...],
    file: str | None,
    base_model: str | None,
    private: bool,
    revision: str | None,
    dry_run: bool,
) -> None:
    """Publish a booster on the Hugging Face Hub, with a card that says what it does and what it costs.

    VECTOR is a .safetensors file or the name of a booster. The card's claims are the rows about this booster in the
    given leaderboards, whatever they say; the rows go with it as results.csv. Rows that were published before are kept.
    """
    _quiet_hub()
    from aft_harness.boosters import hub, references
    from aft_harness.boosters.card_header import CARD, SUFFIX
    from aft_harness.publish.library import push as pushing

    for name, value in (("--to", repo), ("--base-model", base_model)):
        with option(name):
            if value is not None:
                hub.check_repo(value)
    with option("VECTOR"):
        variant = references.load(vector)
        if variant.strength != 1:
            raise ReferenceSyntaxError(
                f"{vector}: a booster is published at strength 1; `aft mix {vector} -o FILE.safetensors` makes one"
            )
    assert variant.booster is not None
    published = pushing.rows_of(vector)
    options: dict[str, Any] = {
        "leaderboards": leaderboards,
        "file": file or (variant.name if vector.endswith(SUFFIX) else None),
        "base_model": base_model,
        "rows": published,
    }
    if not (leaderboards or published):
        note("no --leaderboard: the card will claim nothing")
    if dry_run:
        made = pushing.repository(variant.booster, repo, **options)
        click.echo(made.files()[CARD].decode(), nl=False)
        return
    done = pushing.push(variant.booster, repo, private=True if private else None, revision=revision, **options)
    kept = f", {done.kept} rows kept from before" if done.kept else ""
    found = [
        ("pushed", done.url),
        ("sha256", variant.booster.sha256),
        ("claims", f"{done.claims}{kept}"),
        ("use", f"vector={done.address}"),
        ("pull", f"aft pull {hub.SCHEME}{repo}"),
    ]
    click.echo("\n".join(lines([(key, printable(value)) for key, value in found])))


@main.command("verify", context_settings=CONTEXT, short_help="Check the claims of a published booster.")
@click.argument("source", metavar="SOURCE")
@_recorded_model_options
@click.option("--tasks", metavar="T,...", help="Tasks whose claims are checked.  [default: all]")
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of documents per claim, for a quick look.")
@prompt_options
@click.option("--batch-size", type=BATCH_SIZE, default="16", show_default=True, help="Rows per forward pass, or auto.")
@click.option("--confirm-run-unsafe-code", is_flag=True, help="Allow tasks that execute model-generated code.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def verify(
    context: click.Context,
    source: str,
    model: dict[str, Any],
    tasks: str | None,
    limit: int | None,
    prompting: dict[str, Any],
    batch_size: int | str,
    confirm_run_unsafe_code: bool,
    as_json: bool,
) -> None:
    """Evaluate a published booster again, and say of each claim on its card whether it holds.

    SOURCE is the name of a booster or hf://owner/repo[/file.safetensors][@revision]. On the same documents both scores
    must be those on the card, up to one point or one document; with --limit, the changes must agree within their
    intervals. The exit status is 0 only if all claims that are checked hold.
    """
    with quiet():
        from aft_harness.publish.library import verdicts, verification
        from aft_harness.publish.library.publication import Publication

        with option("SOURCE"):
            published = Publication.open(source)
        name, arguments = _recorded(published, model, batch_size)
        with counting_bar("evaluating", "request") as update:
            found = verification.verify(
                published,
                name,
                tasks=tasks,
                limit=limit,
                prompt_format=prompt_format(prompting),
                include_path=prompting["include_path"],
                confirm_run_unsafe_code=confirm_run_unsafe_code,
                model_args=arguments,
                on_progress=update,
                on_task=lambda task: note(f"evaluating {task}"),
            )
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    else:
        click.echo(verdicts.render(found))
    held = sum(each.outcome == "holds" for each in found)
    note(f"{held} of {len(found)} claims hold")
    if held < len(found):
        context.exit(1)


def _recorded(
    published: Publication, model: dict[str, Any], batch_size: int | str
) -> tuple[str | None, dict[str, Any]]:
    """The model that is named, or the embedded one where that is recorded; None for the recorded one of the hub."""
    from aft_harness.demo import MODEL_NAME, model_folder

    name, given = model_arguments(model, batch_size)
    arguments = {key: value for key, value in given.items() if value is not None}
    base = published.booster.provenance.base_model
    if model["model"] is None and base is not None and base.name == MODEL_NAME:
        return str(model_folder()), arguments
    return model["model"] and name, arguments
