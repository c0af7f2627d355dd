from __future__ import annotations

import pytest
from report_cases import row, sweep_row

from aft_harness.publish.report.findings import finding, headline, outcome, summarise


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 0, 0), "No comparison has a corrected p-value, so nothing is claimed."),
        ((0, 0, 1), "The one comparison cannot be told from no change."),
        ((0, 0, 1200), "None of 1,200 comparisons can be told from no change."),
        ((1, 0, 0), "The one comparison is a significant gain."),
        ((0, 1, 0), "The one comparison is a significant loss."),
        ((2, 1, 0), "2 gains and 1 loss in 3 comparisons; all are significant."),
        ((5, 3, 22), "5 gains and 3 losses in 30 comparisons; 22 cannot be told from no change."),
        ((0, 1, 2), "1 loss in 3 comparisons; 2 cannot be told from no change."),
    ],
)
def test_the_headline_is_a_sentence(numbers: tuple[int, int, int], said: str) -> None:
    assert headline(*numbers) == said


def test_an_outcome_follows_the_corrected_p_and_the_direction() -> None:
    assert outcome(row()) == "gain"
    assert outcome(row(delta=-0.1)) == "loss"
    assert outcome(row(), lower_is_better={"acc"}) == "loss"
    assert outcome(row(p_value=0.001, p_holm=0.05)) == "open"  # as good as the level is not below it
    assert outcome(row(p_value=0.001, p_holm=None)) == "none"
    assert outcome(row(delta=0.0, p_holm=0.001)) == "open"


def test_the_summary_counts_each_comparison_once() -> None:
    rows = [
        row(),
        row(task="b", transfer=1, delta=-0.2),
        row(task="c", transfer=1, p_holm=0.3),
        row(task="c", metric="acc_norm", p_holm=None),
    ]
    found = summarise(rows)
    assert (len(found.gains), len(found.losses), len(found.undecided)) == (1, 1, 1)
    assert found.remarks[0] == (
        "On tasks that the booster was trained on: 1 gain, no loss, 0 undecided. "
        "On other tasks: no gain, 1 loss, 1 undecided."
    )
    assert "a change of 9.0 points with probability 0.8" in found.remarks[1]
    assert found.footnotes[0].startswith("Significant means p < 0.05 after Holm's correction")
    assert found.footnotes[-1] == "1 row has no corrected p-value and makes no claim."
    assert summarise([row(p_holm=None)] * 3).footnotes == [
        "3 rows (other metrics, other strengths, single seeds, or tables of earlier versions) have no corrected "
        "p-value and make no claim."
    ]


def test_the_most_certain_comes_first() -> None:
    rows = [row(task="b", p_value=0.004, p_holm=0.004), row(task="a", p_value=0.002, p_holm=0.004), row(task="c")]
    assert [each.where for each in summarise(rows).gains] == ["c, acc", "a, acc", "b, acc"]


def test_a_finding_says_its_evidence() -> None:
    told = finding(row())
    assert (told.booster, told.where, told.means) == ("aft a L1", "a, acc", "40.0% → 50.0%")
    assert told.change == "+10.0 points [+2.0, +18.0]"
    assert told.evidence == "n = 100, 15 documents gained, 5 lost, p = 0.001 corrected"
    pooled = finding(row(seed="pooled", seeds=3, gained=None, lost=None, p_holm=0.5, strength=0.5))
    assert pooled.booster == "aft a L1 at strength 0.5"
    assert pooled.evidence == (
        "n = 100, p = 0.5 corrected, mean of 3 seeds, a change of 9.0 points would have been found with probability 0.8"
    )
    bits = row(metric="bits", gained=None, lost=None, delta=-0.01, ci_low=-0.02, ci_high=-0.005, p_holm=None)
    assert finding(bits, {"bits"}).where == "a, bits, lower is better"
    assert finding(bits).change == "-0.01 [-0.02, -0.005]" and "p = 0.001" in finding(bits).evidence


def test_of_a_sweep_only_the_choice_counts_and_is_told() -> None:
    rows = [
        sweep_row(0, layers="1", sweep="mine", delta=0.3),
        sweep_row(1, layers="2", sweep="mine"),
        sweep_row(0, layers="3", sweep="mine", delta=0.3),
        sweep_row(1, layers="2", sweep="mine", metric="acc_norm", p_holm=None),
    ]
    found = summarise(rows)
    assert len(found.gains) == 1 and not found.losses and not found.undecided
    (sentence,) = found.sweeps
    assert sentence.startswith(
        "Sweep mine: 30 development documents chose layer 2 among 3. On test documents of a, acc"
    )
    strengths = [sweep_row(chosen, sweep="s", strength=value, p_holm=None) for value, chosen in ((1.0, 0), (0.5, 1))]
    assert "chose strength 0.5 among 2" in summarise(strengths).sweeps[0]
    assert summarise(strengths).sweeps[0].endswith("p = 0.001, not corrected.")
    assert summarise(strengths).headline.startswith("No comparison has a corrected p-value")
