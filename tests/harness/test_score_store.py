from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aft_harness.errors import CacheError
from aft_harness.harness.score_store import ScoreStore, content, key_of


def key(identity: str, *asked: object) -> bytes:
    return key_of(identity, content(*asked))


def test_results_come_back_from_the_file(tmp_path: Path) -> None:
    results = {key("model", (number, 2)): (-number / 3, number % 2 == 0) for number in range(1200)}
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        store.put(results)
        store.put({key("model", (1, 2)): (-9.0, True)})
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        assert store.get([*results, key("other")]) == {**results, key("model", (1, 2)): (-9.0, True)}


def test_keys_tell_their_parts_apart() -> None:
    assert len({key("a", "b"), key("ab"), key("a", ("b",)), key("a", "b", "c"), key("b", "a")}) == 5
    assert key("a", (1, 2)) == key("a", (1, 2))


def test_a_killed_process_loses_nothing_that_was_put(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    script = (
        "import os, sys; from pathlib import Path\n"
        "from aft_harness.harness.score_store import ScoreStore, content, key_of\n"
        "store = ScoreStore(Path(sys.argv[1]))\n"
        "store.put({key_of('a', content()): (1.5, True)}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with ScoreStore(path) as store:
        assert store.get([key("a")]) == {key("a"): (1.5, True)}


def test_what_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "scores.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE scores (other TEXT)")
    with ScoreStore(path) as store:
        for act in (lambda: store.get([key("a")]), lambda: store.put({key("a"): (1.0, True)})):
            with pytest.raises(CacheError, match=r"scores\.sqlite: cannot hold scores"):
                act()


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_text("this is no database " * 100)
    with pytest.raises(CacheError, match=r"scores\.sqlite"):
        ScoreStore(path)
    with pytest.raises(CacheError, match="nowhere"):
        ScoreStore(tmp_path / "nowhere" / "scores.sqlite")
