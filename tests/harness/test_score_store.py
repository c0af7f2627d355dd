from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aft_harness.errors import AftError, CacheError
from aft_harness.harness.score_store import ScoreStore, content, key_of

INPUTS = 2000
WRONG = (
    None,
    0,
    1,
    2,
    -1.5,
    2**62,
    1e300,
    float("inf"),
    float("-inf"),
    "text",
    "",
    "1.5",
    "a\n\x1b",
    b"",
    b"\xff\xfe",
    b"x",
)


def key(*parts: object) -> bytes:
    return key_of("model", content(*parts))


def test_results_come_back_from_the_file(tmp_path: Path) -> None:
    results = {key(number, 2): (-number / 3, number % 2 == 0) for number in range(1200)}
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        store.put(results)
        store.put({key(1, 2): (-9.0, True)})
        store.put_texts({key("text"): "a\x00b\u2028"})
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        assert store.get([*results, key("other")]) == {**results, key(1, 2): (-9.0, True)}
        assert store.get_texts([key("text"), key("other")]) == {key("text"): "a\x00b\u2028"}


def test_keys_tell_their_parts_apart() -> None:
    parts: list[tuple[Any, ...]] = [("a", "b"), ("ab",), ("a", ("b",)), ("a", "b", "c"), ("b", "a")]
    assert len({key(*each) for each in parts} | {key_of("other", content("a", "b"))}) == 6
    assert key("a", (1, 2)) == key("a", (1, 2))


def test_a_killed_process_loses_nothing_that_was_put(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    script = (
        "import os, sys; from pathlib import Path; from aft_harness.harness.score_store import ScoreStore\n"
        "store = ScoreStore(Path(sys.argv[1])); store.put({b'a': (1.5, True)}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with ScoreStore(path) as store:
        assert store.get([b"a"]) == {b"a": (1.5, True)}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_not_stored(tmp_path: Path, score: float) -> None:
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        with pytest.raises(CacheError, match=rf"scores\.sqlite: a score of {score} is not stored: .* not finite; try"):
            store.put({key("a"): (-1.0, True), key("b"): (score, False)})
        assert store.get([key("a"), key("b")]) == {}


def test_a_score_that_is_not_finite_in_an_old_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    with ScoreStore(path) as store:
        store.put({key("good"): (-1.0, True)})
    with sqlite3.connect(path) as old:  # which makes NULL of NaN
        for name, score in (("nan", float("nan")), ("inf", float("-inf"))):
            old.execute("INSERT INTO scores VALUES (?, ?, ?)", (key(name), score, 0))
        old.execute("INSERT INTO texts VALUES (?, NULL)", (key("text"),))
    with ScoreStore(path) as store:
        assert store.get([key(name) for name in ("nan", "inf", "good")]) == {key("good"): (-1.0, True)}
        assert store.get_texts([key("text")]) == {}
        store.put({key("nan"): (-2.0, False)})  # computed again
        assert store.get([key("nan")]) == {key("nan"): (-2.0, False)}


def test_what_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE scores (other TEXT)")
    with ScoreStore(path) as store:
        for act in (lambda: store.get([key("a")]), lambda: store.put({key("a"): (1.0, True)})):
            with pytest.raises(CacheError, match=r"scores\.sqlite: cannot be used as a cache"):
                act()
        with pytest.raises(CacheError, match=r"scores\.sqlite: cannot be used as a cache"):
            store.put_texts({key("a"): "\ud800"})


def test_a_full_disk_is_no_reason_to_delete_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    with ScoreStore(path) as store:
        store.put({key("a"): (1.0, True)})
        store._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(CacheError, match=r"scores\.sqlite: cannot be written .* full.*rerun the same command"):
            store.put_texts({key(str(number)): "x" * 4096 for number in range(20)})
        assert store.get([key("a")]) == {key("a"): (1.0, True)}


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_text("this is no database " * 100)
    with pytest.raises(CacheError, match=r"scores\.sqlite"):
        ScoreStore(path)
    with pytest.raises(CacheError, match="nowhere"):
        ScoreStore(tmp_path / "nowhere" / "scores.sqlite")


def test_whatever_a_file_holds_ends_in_scores_or_in_one_line(tmp_path: Path) -> None:
    rng = Random(0)
    path, keys = tmp_path / "scores.sqlite", [key(number) for number in range(3)]
    with ScoreStore(path) as store:
        store.put({each: (-1.5, True) for each in keys})
        store.put_texts(dict.fromkeys(keys, "text"))
    good = path.read_bytes()

    def write(data: bytes) -> None:
        with path.open("r+b") as file:  # in place: some file systems take milliseconds to empty a file first
            file.write(data)
            file.truncate()

    for place in range(INPUTS):
        if place % 2:
            data = bytearray(good)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            write(bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data))
        else:
            write(good)
            with sqlite3.connect(path) as other:
                other.execute("PRAGMA synchronous = OFF")
                other.execute("PRAGMA journal_mode = MEMORY")
                values = (rng.choice(WRONG), rng.choice((0, 1, rng.choice(WRONG))))
                other.execute("UPDATE scores SET score = ?, greedy = ? WHERE key = ?", (*values, keys[0]))
                other.execute("UPDATE texts SET text = ? WHERE key = ?", (rng.choice(WRONG), keys[0]))
                if rng.random() < 0.2:
                    other.execute("UPDATE texts SET text = CAST(x'ff' AS TEXT) WHERE key = ?", (keys[1],))
            other.close()
        try:
            with ScoreStore(path) as store:
                with suppress(sqlite3.Error):
                    store._database.execute("PRAGMA synchronous = OFF")
                found = store.get(keys)
                assert all(type(score) is float and type(greedy) is bool for score, greedy in found.values())
                assert all(type(text) is str for text in store.get_texts(keys).values())
                if place % 10 == 0:
                    store.put({keys[0]: (-2.0, False)})
        except AftError as error:
            assert str(error).isprintable(), repr(error)
        finally:
            for left in tmp_path.glob("*-journal"):
                os.unlink(left)
