from __future__ import annotations

import torch

from aft_harness.engine.shared_cache import Segment, SharedCache, level_of


def segment(length: int, value: float) -> Segment:
    return Segment(length, [torch.full((2, length, 4), value)], [torch.full((2, length, 4), -value)])


def test_a_level_says_which_texts_look_at_which_segment() -> None:
    long, short = segment(5, 1.0), segment(3, 2.0)
    level = level_of([long, None, short, long], torch.float32)
    assert level is not None
    assert level.keys[0].shape == (2, 2, 5, 4)
    assert level.absent is not None and level.absent.tolist() == [False, True, False, False]
    flat = level.order.flatten().tolist()
    assert [flat[place] for place in level.places.tolist()] == [0, 1, 2, 3]
    owners = [place // level.order.shape[1] for place in level.places.tolist()]
    assert owners[0] == owners[3] != owners[2]
    assert level.mask is not None
    hidden = (level.mask[:, 0, 0] < 0).sum(-1).tolist()
    assert hidden == [0, 2]


def test_no_segments_are_no_level() -> None:
    assert level_of([None, None], torch.float32) is None


def test_the_last_text_takes_the_place_of_one_that_leaves() -> None:
    cache = SharedCache(3, 8, torch.float32)
    for value in (1.0, 2.0, 3.0):
        cache.enter(segment(int(value) + 1, value))
    cache.leave(0)
    assert cache.lengths == [4, 3]
    cache.write((), torch.device("cpu"))
    new = torch.full((2, 2, 1, 4), 9.0)
    keys, values = cache.update(new, -new, 0)
    cache.written()
    assert cache.lengths == [5, 4]
    assert keys[0, 0, :5, 0].tolist() == [3, 3, 3, 3, 9]
    assert keys[1, 0, :4, 0].tolist() == [2, 2, 2, 9]
    assert torch.equal(values[:, :, :4], -keys[:, :, :4])
    assert cache.mask is not None and (cache.mask[:, 0, 0] == 0).sum(-1).tolist() == [5, 4]
