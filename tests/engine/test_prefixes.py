from __future__ import annotations

import pytest
import torch

from aft_harness.engine.prefixes import SHORTEST, clusters

FEW_SHOT = tuple(range(100, 140))


def test_prompts_of_one_prefix_stand_together() -> None:
    prompts = [(*FEW_SHOT, 1, 2), (7, 8, 9), (*FEW_SHOT, 3, 4, 5), (*FEW_SHOT, 1)]
    found = clusters(prompts)
    assert [(set(group.members), group.prefix) for group in found] == [({0, 2, 3}, 40), ({1}, 0)]
    assert found[0].members[0] == 2  # the longest first


def test_every_prompt_keeps_a_token_of_its_own() -> None:
    (group,) = clusters([FEW_SHOT, (*FEW_SHOT, 1), FEW_SHOT])
    assert group.prefix == len(FEW_SHOT) - 1


def test_short_prefixes_are_not_worth_it() -> None:
    prompts = [(*range(SHORTEST - 1), 100 + number, 1) for number in range(5)]
    assert [group.prefix for group in clusters(prompts)] == [0]


def test_two_tasks_are_two_groups() -> None:
    other = tuple(range(200, 260))
    prompts = [(*(FEW_SHOT if number % 2 else other), number) for number in range(8)]
    assert sorted((len(group.members), group.prefix) for group in clusters(prompts)) == [(4, 40), (4, 60)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_hold_every_prompt_once_and_share_what_they_say(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    prompts = [
        tuple(torch.randint(0, 2, (int(torch.randint(1, 60, (), generator=draw)),), generator=draw).cumsum(0).tolist())
        for _ in range(40)
    ]
    found = clusters(prompts, shortest=3)
    assert sorted(index for group in found for index in group.members) == list(range(40))
    for group in found:
        shared = {prompts[index][: group.prefix] for index in group.members}
        assert len(shared) == 1 or not group.prefix
        assert all(len(prompts[index]) > group.prefix for index in group.members)
