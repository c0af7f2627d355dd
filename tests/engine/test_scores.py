from __future__ import annotations

import torch

from aft_harness.engine.scores import Scores, ScoreTable


def test_a_table_gives_back_what_it_took() -> None:
    table = ScoreTable(3)
    given = [
        Scores((4, 7), torch.tensor([-1.0 * place, -2.5], dtype=torch.bfloat16), torch.tensor([place == 1, True]))
        for place in range(3)
    ]
    for index in (2, 0, 1):  # steerings take turns in the order of their layers
        table.put(index, given[index])
    for found, expected in zip(table.rows(), given, strict=True):
        assert found.members == expected.members
        assert found.loglikelihoods.dtype == torch.bfloat16
        assert torch.equal(found.loglikelihoods, expected.loglikelihoods)
        assert found.greedy.dtype == torch.bool and torch.equal(found.greedy, expected.greedy)
