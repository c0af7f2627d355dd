"""What commands show on stderr: bars and notices."""

from __future__ import annotations

import http.server
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

SHOW = """
import logging, os, sys
import click
from aft_harness.cli.app import main, note
from aft_harness.cli.terminal import counting_bar, quiet

@main.command("work")
def work():
    with quiet():
        note("a note")
        logging.getLogger("aft_harness").warning("a warning")
        for library in ("huggingface_hub", "transformers", "datasets", "lm_eval"):
            logging.getLogger(library).info("a notice of %s", library)
            logging.getLogger(library).error("an error of %s", library)
        from tqdm import tqdm
        for _ in tqdm(range(2)):
            pass
        with counting_bar("evaluating", "request") as update:
            update(0, 4)
            update(4, 4)
    click.echo("the result")

main(["work", *sys.argv[1:]])
"""


def shown(*options: str) -> str:
    """What a terminal gets of a command."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 110))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM", "COLUMNS"))}
    with subprocess.Popen(
        [sys.executable, "-c", SHOW, *options], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        text = b"".join(_read(ours))
    os.close(ours)
    assert process.returncode == 0, text
    return text.decode()


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(terminal, 1024)
        except OSError:  # Linux: the other end is closed
            return
        if not part:
            return
        yield part


def asked(endpoint: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What the check leaves in the environment of a process, and says."""
    program = "from aft_harness.cli import terminal; terminal.HUB_TIMEOUT = 0.5; terminal.offline_if_unreachable();"
    program += "import os; print(os.environ.get('HF_HUB_OFFLINE'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "http", "HTTP"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "HF_ENDPOINT": endpoint, **settings},
    )


def test_without_a_network_only_the_caches_are_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert asked(address).stdout == "1\n"
    gone = asked(address)  # refuses to connect
    assert gone.stdout == "1\n"
    assert "cannot be reached ([Errno" in gone.stderr and "using cached files only" in gone.stderr
    for said in ({"HF_HUB_OFFLINE": "0"}, {"HF_HUB_OFFLINE": "1"}):
        explicit = asked(address, **said)
        assert explicit.stdout.strip() == said["HF_HUB_OFFLINE"] and not explicit.stderr
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answered = asked(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (answered.stdout, answered.stderr) == ("None\n", "")


@pytest.mark.parametrize(
    ("options", "notes", "notices"), [((), True, False), (("--quiet",), False, False), (("--verbose",), True, True)]
)
def test_bars_have_labels_and_totals_and_nothing_is_said_twice(
    options: tuple[str, ...], notes: bool, notices: bool
) -> None:
    text = shown(*options)
    assert text.count("the result") == 1
    assert text.count("a note") == text.count("a warning") == int(notes)
    for library in ("huggingface_hub", "transformers", "datasets", "lm_eval"):
        assert text.count(f"an error of {library}") == 1
        assert (f"a notice of {library}" in text) == (notices and library == "lm_eval")
    assert ("evaluating" in text) == notes
    assert not re.search(r"\b0request", text)  # a rate may end in 0
    assert "2/2" not in text, "a bar of a library, which nobody could tell the meaning of"
