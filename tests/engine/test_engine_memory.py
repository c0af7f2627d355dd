"""Memory of this process, as the operating system sees it."""

from __future__ import annotations

import sys

import psutil
import pytest

from aft_harness.engine.memory import release


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators give memory back by themselves")
def test_what_nothing_uses_goes_back_to_the_operating_system() -> None:
    blocks = [
        bytearray(b"x" * 2**16) for _ in range(4000)
    ]  # too small for glibc to take them from the system one by one
    last = bytearray(2**16)  # stands above them, so that the heap cannot shrink by itself
    before = psutil.Process().memory_info().rss
    blocks.clear()
    release()
    assert before - psutil.Process().memory_info().rss > 2000 * 2**16
    assert len(last) == 2**16
