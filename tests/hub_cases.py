"""A hub on loopback: a real HTTP server that speaks what huggingface_hub speaks of boosters; and its faults."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

OWNER, TOKEN = "me", "hf_right"

_ZERO = "0" * 40


@dataclass
class Repo:
    """A repository: commits by hash, each with its files, and where branches and tags point to."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {_ZERO: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": _ZERO})

    def commit(self, files: dict[str, bytes], ref: str = "main", whole: bool = False) -> str:
        """Adds a commit with some files changed, or with nothing but these."""
        content = {**({} if whole else self.commits[self.refs[ref]]), **files}
        text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(content.items())})
        name = hashlib.sha1(f"{self.refs[ref]}{text}".encode()).hexdigest()
        self.commits[name] = content
        self.refs[ref] = name
        return name

    def resolved(self, revision: str) -> str | None:
        """The commit that a revision is."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repos: By `owner/repo`.
        lfs: Names of files that are uploaded by LFS end in one of these.
        truncated: Files of which only half is sent, though the length of all was said.
        broken: Answers every request with this status, if it is not 0.
        requests: Method and path of all requests.
        on_request: Called with the path before a request is answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lfs: tuple[str, ...] = ()
        self.truncated: set[str] = set()
        self.broken = 0
        self.requests: list[tuple[str, str]] = []
        self.on_request: Any = lambda path: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Hub]:
    """A hub while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that was killed
            self.close_connection = True

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self.server.requests.append((self.command, split.path))
        self.server.on_request(split.path)
        if self.server.broken:
            return self._error(self.server.broken, message="broken")
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            return self._error(401, message="Invalid credentials in Authorization header")
        self.trusted = token is not None
        if self.command == "PUT" and parts[0] == "objects":
            self.server.objects[parts[1]] = self.body
            return self._json({})
        if parts == [""]:
            return self._json({})
        if parts[0] != "api":
            if parts[2:3] == ["resolve"]:
                return self._file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
            return self._lfs_batch()
        if parts[1:] == ["repos", "create"]:
            return self._create()
        if parts[1:] == ["validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[1:] == ["models"]:
            return self._list()
        name, rest = "/".join(parts[2:4]), parts[4:]
        found = self.server.repos.get(name)
        if found is None or (found.private and not self.trusted):
            return self._error(404 if self.trusted else 401, "RepoNotFound", "Repository not found")
        if self.command == "POST" and not self.trusted:
            return self._error(401, message="Invalid username or password.")
        if not rest or rest[0] == "revision":
            return self._info(name, found, rest[1] if rest else "main")
        if rest[0] == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if self._by_lfs(file["path"]) else "regular"}
                for file in json.loads(self.body)["files"]
            ]
            return self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if rest[0] == "branch":
            if rest[1] in found.refs:
                return self._error(409, message="exists")
            found.refs[rest[1]] = found.refs["main"]
            return self._json({})
        if rest[0] == "commit":
            return self._commit(name, found, rest[1])
        return self._error(404, message=f"the loopback hub does not know {split.path}")

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _by_lfs(self, path: str) -> bool:
        return path.endswith(self.server.lfs) if self.server.lfs else False

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not self.trusted:
            return self._error(401, message="Invalid username or password.")
        if not name.startswith(f"{OWNER}/"):
            return self._error(403, message="You don't have the rights to create a model under this namespace")
        if name in self.server.repos:
            return self._json({"url": f"{self.server.url}/{name}", "error": "exists"}, 409)
        self.server.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": f"{self.server.url}/{name}"})

    def _info(self, name: str, found: Repo, revision: str) -> None:
        commit = found.resolved(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": file} for file in sorted(found.commits[commit])]
        self._json({"id": name, "modelId": name, "sha": commit, "private": found.private, "siblings": siblings})

    def _list(self) -> None:
        import yaml

        models = []
        for name, found in self.server.repos.items():
            text = found.commits[found.refs["main"]].get("README.md", b"").decode()
            data = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
            wanted = self.query.get("filter", [])
            matches = set(wanted) <= set(data.get("tags", [])) and self.query.get("search", [""])[0] in name
            if matches and (self.trusted or not found.private):
                models.append({"id": name, "modelId": name, "cardData": data, "tags": data.get("tags", [])})
        self._json(models)

    def _commit(self, name: str, found: Repo, revision: str) -> None:
        files: dict[str, bytes] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in (None, found.refs.get(revision)):
                return self._error(412, message="The target branch has been updated")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = found.commit(files, revision)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def _lfs_batch(self) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self.server.repos.get(name)
        if found is None or (found.private and not self.trusted):
            return self._error(404 if self.trusted else 401, "RepoNotFound", "Repository not found")
        commit = found.resolved(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in found.commits[commit]:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = found.commits[commit][file]
        etag = hashlib.sha256(data).hexdigest()
        sent = data[: len(data) // 2] if file in self.server.truncated and self.command == "GET" else data
        self._send(200, sent, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(data))})

    def _json(self, value: Any, status: int = 200, kind: str = "application/json") -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": kind})

    def _error(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        given = {"X-Error-Code": code, "X-Error-Message": message}
        kept = {name: value for name, value in given.items() if value}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {**kept, **(headers or {}), "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, token: str | None = TOKEN) -> None:
    """Lets huggingface_hub in this process use a hub, as environment variables do before it is imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose protocol is not HTTP's
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("AFT_HOME", str(cache.parent / "aft"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    logging.set_verbosity_error()


def environment(url: str, folder: Path, **further: str) -> dict[str, str]:
    """Of a process that uses a hub."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    given = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_CACHE": str(folder / "cache")}
    given |= {"AFT_HOME": str(folder / "aft"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), **given, **further}
