"""Boosters in repositories on the Hugging Face Hub: their addresses, and fetching the files of one.

Knows `hf://` addresses and the errors of huggingface_hub; tokens, the cache and offline mode are huggingface_hub's.
Knows nothing of results, and pushes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from aft_harness.boosters import file_format
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.card_header import CARD, RESULTS, SIZE_LIMIT, SUFFIX, inside, load_checked, named_by
from aft_harness.errors import AftError, BoosterError, HubError, ReferenceSyntaxError
from aft_harness.text import printable, reason

SCHEME = "hf://"
FORM = f"hf://owner/repo/file{SUFFIX}[@revision]"

TIMEOUT = 10.0
"""Seconds that the hub has to answer in."""

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?", re.DOTALL)
_OWNED = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REPO_LENGTH = 96


@dataclass(frozen=True)
class Address:
    """Where a booster is on the hub. Each part is checked: none leads out of a folder that is named after it.

    Attributes:
        repo: `owner/repo`.
        file: Path inside the repository; None for the one that the card names.
        revision: Branch, tag or commit; None for the default branch.
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, *, whole: bool = True) -> Address:
        """Reads an address.

        Args:
            text: `hf://owner/repo/file.safetensors[@revision]`.
            whole: The file must be named.

        Raises:
            ReferenceSyntaxError: It cannot be read, or has a part that no repository can have.
        """
        match = _ADDRESS.fullmatch(text)
        form = FORM if whole else f"hf://owner/repo[/file{SUFFIX}][@revision]"
        if match is None or (whole and not match["file"]):
            raise ReferenceSyntaxError(f"{text}: expected {form}")
        check_repo(match["repo"], text)
        for what in ("file", "revision"):
            if match[what] and not inside(match[what]):
                raise ReferenceSyntaxError(f"{text}: {match[what]!r} is not a {what} of a repository; expected {form}")
        if match["file"] and not match["file"].endswith(SUFFIX):
            raise ReferenceSyntaxError(f"{text}: a booster's file name ends in {SUFFIX}; expected {form}")
        return cls(match["repo"], match["file"], match["revision"])

    def __str__(self) -> str:
        """The address as it is written."""
        file, revision = (f"/{self.file}" if self.file else ""), (f"@{self.revision}" if self.revision else "")
        return f"{SCHEME}{self.repo}{file}{revision}"


@dataclass(frozen=True)
class Fetched:
    """Files of one commit, in huggingface_hub's cache.

    Attributes:
        address: Where they come from, with the file named.
        commit: The commit that the revision is.
        booster: The booster file.
        card: The repository's card; None where it has none.
        results: The rows of its claims; None where it has none.
    """

    address: Address
    commit: str
    booster: Path
    card: Path | None
    results: Path | None = None

    def load(self) -> Booster:
        """Reads the booster, and refuses one that is not the one which the card names.

        Raises:
            BoosterError: It cannot be read, or is not the card's.
        """
        assert self.address.file is not None
        return load_checked(self.booster, self.address.file, self.card, str(self.address))


def check_repo(repo: str, text: str | None = None) -> str:
    """The name of a repository, `owner/repo`, as it was given.

    Raises:
        ReferenceSyntaxError: No repository can have it.
    """
    owner, slash, name = repo.partition("/")
    wrong = not (slash and _OWNED.fullmatch(owner) and _OWNED.fullmatch(name))
    if wrong or len(repo) > _REPO_LENGTH or any(part in repo for part in ("..", "--")) or repo.endswith(".git"):
        where = f"{text}: " if text else ""
        raise ReferenceSyntaxError(f"{where}{repo!r} is not the name of a repository; expected owner/repo")
    return repo


def fetch(address: Address, *, results: bool = False) -> Fetched:
    """Downloads a booster with its card, all of the same commit, unless the cache has them.

    Args:
        address: Where it is.
        results: Fetch the rows of its claims as well.

    Raises:
        HubError: One line says why it cannot be had, and what to do.
        BoosterError: The card names no booster, where the address names no file.
    """
    first = address.file or CARD
    path, cached = _first(address, first)
    commit = path.parents[len(PurePosixPath(first).parts) - 1].name
    card = path if address.file is None else _further(address, CARD, commit, cached)
    if address.file is None:
        named = _named(address, path)
        address = replace(address, file=named[0])
        found = _further(address, named[0], commit, cached)
        if found is None:
            raise HubError(f"{address}: the card names {named[0]}, which the repository does not have")
        path = found
    rows = _further(address, RESULTS, commit, cached) if results else None
    fetched = Fetched(address, commit, path, card, rows)
    documents = file_format.load(path, str(address)).provenance.documents
    if documents is not None and documents.sidecar:  # the list of very many training documents is a file of its own
        assert address.file is not None
        _further(address, file_format.sidecar(Path(address.file)).as_posix(), commit, cached)
    return fetched


def _named(address: Address, card: Path) -> tuple[str, str]:
    """What a card names, where the address does not.

    Raises:
        BoosterError: It names none.
    """
    try:
        named = named_by(card)
    except AftError as error:
        raise BoosterError(f"{address}: {error}") from None
    if named is None:
        raise BoosterError(f"{address}: its card names no booster; give the file: {SCHEME}{address.repo}/FILE{SUFFIX}")
    return named


def explained(error: BaseException, repo: str, *, file: str | None = None, revision: str | None = None) -> str:
    """What an error of huggingface_hub means, in one line with the way out."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"access to {repo} is restricted; ask for it on {constants.ENDPOINT}/{repo}, and {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no repository {repo}, or a private one; to read private ones, {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} has no file {file}{f' at revision {revision}' if revision else ''}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        said = f" ({printable(error.server_message)[:300]})" if error.server_message else ""
        known = {
            401: f"the hub does not accept the token; {LOG_IN}",
            403: f"the token does not allow this on {repo}; use one with the right to",
            409: f"{repo} was changed at the same time; rerun the same command",
            412: f"{repo} was changed at the same time; rerun the same command",
            429: "too many requests; try again later",
        }
        return f"{known.get(status, f'the hub answered with error {status}')}{said}"
    if _from_transport(error):
        return f"{constants.ENDPOINT} cannot be reached ({reason(error)})"
    if "Consistency check failed" in str(error):
        return f"the download is incomplete ({reason(error, sentence=True)}); rerun the same command"
    return reason(error) or type(error).__name__


def check_reachable() -> None:
    """Asks the hub for nothing in particular, once: huggingface_hub asks for lists again and again before it gives up.

    Raises:
        HubError: It cannot be reached.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:
        raise HubError(explained(error, "")) from None


def unreachable(error: BaseException) -> bool:
    """Whether an error says that the hub cannot be asked now, so that the cache has to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return bool(error.response.status_code >= 500 or error.response.status_code == 429)
    return isinstance(error, errors.OfflineModeIsEnabled) or _from_transport(error)


def _from_transport(error: BaseException) -> bool:
    # The package that huggingface_hub sends requests with has changed, and may again.
    return type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError | TimeoutError)


def _first(address: Address, file: str) -> tuple[Path, bool]:
    """The first file of a repository, which says what commit the revision is; and whether only the cache was asked.

    The hub is asked once before anything is downloaded: where it cannot be reached, huggingface_hub would try again and
    again.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    api = HfApi()
    try:
        url = hf_hub_url(address.repo, file, revision=address.revision, endpoint=api.endpoint)
        size = api.get_hf_file_metadata(url=url, timeout=TIMEOUT).size
    except Exception as error:
        why = explained(error, address.repo, file=file, revision=address.revision)
        if not unreachable(error):
            raise HubError(f"{address}: {why}") from None
        try:
            found = api.hf_hub_download(address.repo, file, revision=address.revision, local_files_only=True)
        except EntryNotFoundError:
            raise HubError(f"{address}: {why}, and the cache does not have it") from None
        return Path(found), True
    limit = file_format.SIZE_LIMIT if file.endswith(SUFFIX) else SIZE_LIMIT
    if size is not None and size > limit:
        raise HubError(f"{address}: {file} has {size} bytes; the limit is {limit}")
    return _downloaded(address, file, address.revision), False


def _further(address: Address, file: str, commit: str, cached: bool) -> Path | None:
    """Another file of the same commit; None where there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        if cached:
            return Path(HfApi().hf_hub_download(address.repo, file, revision=commit, local_files_only=True))
        return _downloaded(address, file, commit)
    except LocalEntryNotFoundError as error:
        if cached:
            return None
        why = explained(error.__cause__ or error, address.repo, file=file)
        raise HubError(f"{address}: {file} cannot be fetched ({why})") from None
    except EntryNotFoundError:
        return None


def _downloaded(address: Address, file: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(HfApi().hf_hub_download(address.repo, file, revision=revision))
    except EntryNotFoundError:
        raise
    except Exception as error:
        why = explained(error, address.repo, file=file, revision=revision)
        raise HubError(f"{address}: {file} cannot be fetched: {why}") from None
