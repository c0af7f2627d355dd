from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import lines, run

from aft_harness.errors import FileError, ParseError, TaskError
from aft_harness.results.runs import rows
from aft_harness.results.statistics import compare
from aft_harness.results.table import (
    COLUMNS,
    COUNTS,
    DEVELOPMENT,
    NUMBERS,
    TEXT,
    TOLD,
    amount,
    change,
    read,
    render,
    sentence,
    to_csv,
    to_frame,
    to_rows,
)

BEFORE, AFTER = [0] * 30 + [1] * 10, [1] * 20 + [0] * 10 + [1] * 9 + [0]


def made(**changes: Any) -> dict[str, Any]:
    (row,) = rows([run({"b": lines(BEFORE)}), run({"b": lines(AFTER)}, "s", trained_on=["a", "c"])])
    return {**row, **changes}


def test_every_column_has_one_type() -> None:
    assert sorted((*TEXT, *COUNTS, *NUMBERS)) == sorted((*COLUMNS, *DEVELOPMENT))
    frame = to_frame([made(), made(gained=None, objective=None, p_holm=None)])
    assert tuple(frame) == COLUMNS
    assert all(str(frame[column].dtype) == "Int64" for column in COUNTS if column in COLUMNS)
    assert all(frame[column].dtype == np.float64 for column in NUMBERS if column in COLUMNS)
    assert frame["gained"].isna().tolist() == [False, True] and frame["objective"].tolist() == ["choice", ""]
    assert to_rows(frame)[0] == made()
    with pytest.raises(TaskError, match=r"column n: .*'many'"):
        to_frame([made(n="many")])


def test_a_csv_file_reads_back_as_the_very_numbers(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).normal(size=50)
    frame = to_frame([made(delta=value, p_value=abs(value) * 1e-200) for value in drawn])
    to_csv(frame, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), frame, check_exact=True)
    with (tmp_path / "t.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["delta"]) for row in written] == drawn.tolist()
    assert written[0]["n"] == "40" and written[0]["strength"] == "1.0"


def test_a_sweep_has_further_columns(tmp_path: Path) -> None:
    developed = {"development_n": 100, "development_accuracy": None, "development_loss": 0.71234}
    developed |= {"development_measure": "ranking loss", "chosen": 1}
    frame = to_frame([made(**developed), made(strength=2.0)])
    assert tuple(frame) == (*COLUMNS, *DEVELOPMENT)
    to_csv(frame, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), frame)
    head, chosen, other = render(frame).splitlines()
    assert "loss" in head and re.search(r" 1 +100 +0\.7123  ranking loss  yes ", chosen)
    assert "yes" not in other


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "'=", "''+", "\uff1d", "\uff20"])
def test_no_cell_is_a_formula_of_a_spreadsheet(tmp_path: Path, start: str) -> None:
    name = f"{start}HYPERLINK(1)"
    frame = to_frame([made(booster=name, task=name, delta=-0.5)])
    to_csv(frame, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["booster"] == row["task"] == f"'{name}" and row["delta"] == "-0.5"
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), frame)  # and the name stays what it is
    assert json.loads(render(frame, "json"))[0]["booster"] == name


def test_no_cell_breaks_a_table(tmp_path: Path) -> None:
    name = "a|b\nc\x1b[31m\u2028d\te\ud800"
    frame = to_frame([made(booster=name), made(model="plain")])
    assert frame["booster"][0] == "a|b c [31m d e"
    assert len(render(frame).splitlines()) == 3 and "\x1b" not in render(frame)
    markdown = render(frame, "md").splitlines()
    assert len(markdown) == 4 and "| a\\|b c \\[31m d e |" in markdown[2]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in markdown} == {13}
    to_csv(frame, tmp_path / "t.csv")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
    # Nor does what someone wrote into the file.
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("plain", '"x\ny"'))
    assert read(tmp_path / "t.csv")["model"].tolist() == ["toy", "x y"]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("<javascript:alert(1)>", "&lt;javascript:alert(1)&gt;"),
        ("![x](//e.org/a.png)", r"\!\[x\](//e.org/a.png)"),
        ("https://e.org www.e.org a@e.org", r"https\://e.org www\.e.org a\@e.org"),
        ("&lt;b&gt; `c` **d** ~~e~~ $f$", r"&amp;lt;b&amp;gt; \`c\` \*\*d\*\* \~\~e\~\~ \$f\$"),
        ("_x_ a_b aft_letter", r"\_x\_ a_b aft_letter"),
        ("a\\|b", r"a\\\|b"),
    ],
)
def test_no_cell_is_markup(name: str, cell: str) -> None:
    shown = markdown([made(model=name, booster=name, task=name, metric=name, seed=name)])[2]
    assert shown.count(f" {cell} ") == 5 and "[+35.0, +60.0] *" in markdown([made(ci_low=0.35, ci_high=0.6)])[2]


def test_the_cells_tell_percentages_points_and_what_stands() -> None:
    (cells,) = table_of([made()])
    assert (cells["n"], cells["baseline"], cells["steered"], cells["metric"]) == ("40", "25.0%", "72.5%", "acc")
    paired = compare(BEFORE, AFTER)
    interval = f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}]"
    assert cells["change [95% interval]"] == f"+47.5 points {interval} *"
    assert cells["p"] == cells["p (Holm)"] == f"{paired.p_value:.2g}"
    (weak,) = table_of([made(p_holm=0.05)])
    assert not weak["change [95% interval]"].endswith("*")
    (unknown,) = table_of([made(ci_low=None, ci_high=float("nan"))])
    assert unknown["change [95% interval]"] == "+47.5 points [unknown] *"
    (bits,) = table_of([made(metric="bits", filter="strict", gained=None, lost=None, p_holm=None, baseline=0.76872)])
    assert (bits["baseline"], bits["metric"], bits["p (Holm)"]) == ("0.7687", "bits,strict", "")
    assert bits["change [95% interval]"].startswith("+0.475 [")


def table_of(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The cells of the Markdown form, by heading."""
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in markdown(rows))
    return [dict(zip(head, line, strict=True)) for line in body]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    return render(to_frame(rows), "md").splitlines()


def test_a_terminal_sees_aligned_columns() -> None:
    frame = to_frame([made(), made(booster="a much longer name", n=5, task="arc_challenge")])
    head, first, second = render(frame).splitlines()
    starts = [match.start() for match in re.finditer(r"(?<=  )\S", second)]
    for heading in ("task", "metric"):  # text starts where its heading does
        assert head.index(heading) in starts and first[head.index(heading) - 2 :][:2] == "  "
    for heading in ("   n", "baseline", "p (Holm)"):  # numbers end where it does
        end = head.index(heading) + len(heading)
        assert all(line[end - 1].strip() and not line[end : end + 2].strip() for line in (first, second))
    # What all rows share is left out; what tells them apart is not.
    assert not {"model", "strength", "seed"} & set(head.split())
    assert "seed" in render(to_frame([made(), made(seed="1")])).splitlines()[0]
    assert render(to_frame([])).split() == [cell for cell in head.split()]


def test_json_and_csv_keep_every_column_and_digit() -> None:
    frame = to_frame([made(min_detectable=float("nan"), delta=1 / 3, development_loss=float("inf"))])
    (row,) = json.loads(render(frame, "json"), parse_constant=lambda name: pytest.fail(f"{name} is not valid JSON"))
    assert list(row) == list(frame) and row["delta"] == 1 / 3
    assert (row["min_detectable"], row["development_loss"], row["n"]) == (None, None, 40)
    (read_back,) = csv.DictReader(io.StringIO(render(frame, "csv")))
    assert float(read_back["delta"]) == 1 / 3 and read_back["development_loss"] == "inf"
    with pytest.raises(ParseError, match="unknown table format 'xlsx'; expected one of table, md, csv, json"):
        render(frame, "xlsx")


def test_a_sentence_tells_n_means_change_and_test() -> None:
    assert re.fullmatch(
        r"n = 4, 25\.0% -> 75\.0%, \+50\.0 points \[\+0\.0, \+100\.0\], gained 2, lost 0, exact McNemar p = 0\.5",
        sentence(compare([1, 0, 0, 0], [1, 1, 1, 0])),
    )
    assert re.fullmatch(
        r"n = 3, 0\.5 -> 0\.75, \+0\.25 \[unknown\], sign-flip p = 0\.25",
        sentence(compare([0.25, 0.5, 0.75], [0.5, 0.75, 1.0])),
    )


def test_what_is_no_table_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(FileError, match=r"t\.csv: cannot be read \(No such file or directory\)"):
        read(path)
    path.write_text("")
    with pytest.raises(TaskError, match=r"t\.csv: cannot be read as a table"):
        read(path)
    to_csv(to_frame([made()]), path)
    head, row = path.read_text().splitlines()
    for text, reason in (
        (f"{head}\n{row},more\n", f"row 1 has {len(COLUMNS) + 1} cells; expected {len(COLUMNS)}"),
        (f"{head}\n{row}\n{row[: row.rindex(',')]}\n", f"row 2 has {len(COLUMNS) - 1} cells; expected"),
        (f"{head},model\n{row},toy\n", "duplicate column"),
        (f'{head}\n"{row}\n', "cannot be read as a table"),
        (f"{head}\n{row.replace(',40,', ',4.5,')}\n", r"column n: 4\.5 is not a whole number"),
        (f"{head}\n{row.replace(',40,', ',1e300,')}\n", r"column n: 1e\+300 is not a whole number"),
    ):
        path.write_text(text)
        with pytest.raises(TaskError, match=reason):
            read(path)
    with pytest.raises(FileError, match=r"nowhere/t\.csv: cannot be written"):
        to_csv(to_frame([]), tmp_path / "nowhere" / "t.csv")


def test_a_table_may_lack_what_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    to_frame([made()])[list(TOLD)].to_csv(path, index=False)
    with pytest.raises(TaskError, match="column model is missing"):
        read(path)
    found = read(path, TOLD)
    assert list(found.columns) == list(COLUMNS) and found["model"].tolist() == [""]
    assert found["n"].tolist() == [made()["n"]] and found["p_holm"].isna().all()


def test_sizes_have_the_unit_of_their_metric() -> None:
    assert amount(made(), 0.0512) == "5.1 points"
    assert amount({**made(), "metric": "bits", "gained": None}, 0.0512) == "0.0512"
    assert change({**made(), "delta": None}) == ""
    assert change(made()) in render(to_frame([made()]))
