"""Memory that views keep, and that is free when the last of them is gone."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from arcpipe.allocator import allocate
from benchmarks.worst.held import resident_bytes

MB = 1 << 20


def test_views_keep_memory_and_their_end_frees_it() -> None:
    before = resident_bytes(os.getpid())
    for number in range(16):
        memory = allocate(64 * MB)
        memory[: 2 * MB] = bytes([number]) * (2 * MB)
        part = memory[17:19].toreadonly()
        del memory
        gc.collect()
        assert bytes(part) == bytes([number] * 2)
        del part
    assert resident_bytes(os.getpid()) - before < 8 * MB


def test_memory_takes_no_pages_until_it_is_written() -> None:
    before = resident_bytes(os.getpid())
    memory = allocate(256 * MB)
    memory[100 * MB] = 1
    assert resident_bytes(os.getpid()) - before < MB
    assert (memory.format, len(memory), memory.readonly) == ("B", 256 * MB, False)


def test_more_than_there_can_be_is_an_error() -> None:
    with pytest.raises(MemoryError, match=r"no memory for \d+ bytes"):
        allocate(sys.maxsize)
