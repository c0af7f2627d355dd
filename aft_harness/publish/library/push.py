"""Pushing a booster to the hub: the file, its card and the rows of its claims, in one commit.

Knows huggingface_hub's interface for repositories and commits. Nothing of a repository that is not a booster's is
overwritten, and rows that were published once are kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Gives boosters their `applied_to`: who has a booster from here has both.
import aft_harness.engine.steering  # noqa: F401
from aft_harness.boosters import card_header, hub, references
from aft_harness.boosters.booster import PROVIDED, Booster
from aft_harness.errors import AftError, BoosterError, HubError, TaskError
from aft_harness.publish.library import card
from aft_harness.publish.library.publication import file_name, read_rows, rows_about
from aft_harness.results import leaderboard, table

MESSAGE = "Booster {sha}, card and results"
"""Summary of a commit."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        address: Where it is now; `vector=` takes this.
        url: Page of the commit.
        commit: Its hash.
        claims: Number of claims on the card.
        kept: Rows that the repository had already and that were not among those given.
    """

    address: str
    url: str
    commit: str
    claims: int
    kept: int


@dataclass(frozen=True)
class Repository:
    """What a booster becomes on the hub.

    Attributes:
        booster: The booster.
        repo: `owner/repo`.
        file: Name of the booster file.
        rows: Rows about it.
        base_model: Hub id of the base model, if not the recorded one.
    """

    booster: Booster
    repo: str
    file: str
    rows: Sequence[dict[str, Any]]
    base_model: str | None = None
    reference: str | None = None

    @property
    def address(self) -> str:
        """What `vector=` calls it."""
        return self.reference or f"{hub.SCHEME}{self.repo}/{self.file}"

    def files(self, previous_card: str = "") -> dict[str, bytes]:
        """The content of the repository's files, by name."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            self.booster.save(path)
            found = {each.name: each.read_bytes() for each in sorted(Path(folder).iterdir())}
            frame = table.to_frame(self.rows)[list(table.COLUMNS)]
            table.to_csv(frame, Path(folder) / card_header.RESULTS)
            found[card_header.RESULTS] = (Path(folder) / card_header.RESULTS).read_bytes()
        about = card.About(
            booster=self.booster,
            file=self.file,
            size=len(found[self.file]),
            title=self.repo.rpartition("/")[2],
            reference=self.address,
            rows=self.rows,
            lower=_lower(self.rows),
            base_model=self.base_model,
        )
        return {**found, card_header.CARD: card.render(about, previous_card).encode()}


def repository(
    booster: Booster,
    repo: str,
    *,
    leaderboards: Sequence[str | os.PathLike[str]] = (),
    file: str | None = None,
    base_model: str | None = None,
    rows: Sequence[dict[str, Any]] = (),
) -> Repository:
    """What a booster becomes on the hub, without asking it.

    Args:
        booster: The booster.
        repo: `owner/repo`.
        leaderboards: CSV files with results; the rows about this booster are published, whatever they say.
        file: Name of the booster file; by default the repository's.
        base_model: Hub id of the base model, if not the recorded one.
        rows: Further rows about it.

    Raises:
        AftError: A name that no repository can have, or a leaderboard that cannot be read or has no row about it.
    """
    hub.check_repo(repo)
    if base_model is not None:
        hub.check_repo(base_model)
    tables: list[list[dict[str, Any]]] = [rows_about(booster, list(rows))]
    for path in map(Path, leaderboards):
        found = rows_about(booster, read_rows(path))
        if not found:
            raise TaskError(f"{path}: no row is about this booster (sha256 {booster.sha256[:12]})")
        tables.append(found)
    name = file_name(file or repo.rpartition("/")[2])
    return Repository(booster, repo, name, leaderboard.collected(tables), base_model)


def push(
    booster: Booster,
    repo: str,
    *,
    leaderboards: Sequence[str | os.PathLike[str]] = (),
    file: str | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    rows: Sequence[dict[str, Any]] = (),
) -> Pushed:
    """Publishes a booster in a repository of the Hugging Face Hub, with a card and the results that the card claims.

    The repository is made if it does not exist. Rows about this booster that it has already are kept, negative ones
    too.

    Args:
        booster: The booster.
        repo: `owner/repo`.
        leaderboards: CSV files with results; the rows about this booster are published, whatever they say.
        file: Name of the booster file; by default the repository's.
        base_model: Hub id of the base model, if not the recorded one.
        private: Whether a new repository is private; None means as the hub's settings say.
        revision: Branch to push to, made if it does not exist; None means the default branch.
        token: Of the hub; None means the one of `hf auth login` or HF_TOKEN.
        rows: Further rows about it.

    Raises:
        AftError: It cannot be pushed; nothing was changed except that the repository may have been made.

    Example:
        >>> booster.push_to_hub("me/arc", leaderboards=["results.csv"])  # doctest: +SKIP
    """
    made = repository(booster, repo, leaderboards=leaderboards, file=file, base_model=base_model, rows=rows)
    if revision is not None:
        hub.Address.parse(f"{hub.SCHEME}{repo}/{made.file}@{revision}")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        parent = api.model_info(repo, revision=revision)
        names = {sibling.rfilename for sibling in parent.siblings or ()}
        given = len(made.rows)
        made, previous = _with_published(api, made, names, parent.sha)
        kept = len(made.rows) - given
        operations = [CommitOperationAdd(name, content) for name, content in made.files(previous).items()]
        message = MESSAGE.format(sha=booster.sha256[:12])
        done = api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=parent.sha)
    except AftError:
        raise
    except Exception as error:
        raise HubError(f"{repo}: {hub.explained(error, repo, revision=revision)}") from error
    where = f"{made.address}@{revision}" if revision is not None else made.address
    claims = sum(row["p_holm"] is not None for row in made.rows)
    return Pushed(where, str(done.commit_url), str(done.oid), claims, kept)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows that a booster of the library has; none for anything else.

    Raises:
        AftError: They cannot be read.
    """
    entry = references.Reference(name).entry
    return read_rows(entry.results) if entry is not None and entry.results is not None else []


def _with_published(api: Any, made: Repository, names: set[str], commit: str | None) -> tuple[Repository, str]:
    """With the rows about this booster that a repository has already; and its card.

    Raises:
        BoosterError: The repository is something else's.
    """

    def fetched(name: str) -> Path | None:
        return Path(api.hf_hub_download(made.repo, name, revision=commit)) if name in names else None

    previous, results = fetched(card_header.CARD), fetched(card_header.RESULTS)
    try:
        text = card_header.read_text(previous) if previous is not None else ""
        named = card_header.named_by(previous) if previous is not None else None
        known = rows_about(made.booster, read_rows(results)) if results is not None else []
    except AftError as error:
        raise BoosterError(f"{made.repo}: {error}") from None
    if named is None and (text.strip() or names & {"config.json", "model.safetensors", "adapter_config.json"}):
        raise BoosterError(f"{made.repo}: a repository of something else (its card names no booster); choose another")
    if named is not None and named[0] != made.file:
        raise BoosterError(
            f"{made.repo}: has the booster {named[0]}, and a repository has one; push to another repository, or name "
            f"the file {named[0]} to replace it"
        )
    return replace(made, rows=leaderboard.collected([known, made.rows])), text


def _lower(rows: Sequence[dict[str, Any]]) -> frozenset[str]:
    from aft_harness.harness.metrics import lower_is_better

    return lower_is_better(row["metric"] for row in rows) if rows else frozenset()


def _push_to_hub(booster: Booster, repo: str, **options: Any) -> str:
    return push(booster, repo, **options).url


PROVIDED["push_to_hub"] = _push_to_hub
