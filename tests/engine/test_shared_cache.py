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


def test_a_level_with_the_same_segments_keeps_its_tensors() -> None:
    first, second = segment(5, 1.0), segment(3, 2.0)
    before = level_of([first, second, first], torch.float32)
    assert before is not None
    after = level_of([second, first], torch.float32, before)
    fresh = level_of([second, first], torch.float32)
    assert after is not None and fresh is not None
    assert after.keys is before.keys and after.values is before.values
    flat = after.order.flatten()[after.places].tolist()
    assert flat == [0, 1]
    owners = [after.segments[place // after.order.shape[1]] for place in after.places.tolist()]
    assert owners == [second, first]
    other = level_of([first], torch.float32, before)
    assert other is not None and other.keys[0].shape == (1, 2, 5, 4)


def test_tails_grow_without_gaps_and_keep_what_they_hold() -> None:
    cache = SharedCache(2, 100, torch.float32)
    cache.enter(segment(3, 1.0))
    for step in range(90):
        if step == 40:
            cache.enter(segment(70, 2.0))
        cache.write((), torch.device("cpu"))
        new = torch.full((len(cache.lengths), 2, 1, 4), 3.0 + step)
        keys, _ = cache.update(new, new, 0)
        assert keys.is_contiguous() and cache.mask is not None and cache.mask.shape[-1] == keys.shape[2] <= 100
        cache.written()
        if step == 65:
            cache.leave(1)
    assert keys[0, 0, :93, 0].tolist() == [1.0] * 3 + [3.0 + step for step in range(90)]


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
