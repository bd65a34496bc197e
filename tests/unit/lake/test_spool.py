"""The bytes of finished files, where their disk takes no more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arcpipe.lake.spool import Spool, SpoolMemory


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_on(spool: Spool, data: bytes) -> None:
    while True:
        spool.write(data)


@pytest.mark.parametrize("size", [5_000, 500_000])
def test_a_spool_that_could_not_be_written_closes_all_the_same(size: int, tmp_path: Path) -> None:
    """Small pieces wait in the file object, which writes them when it is closed. That must not keep others open."""
    memory = SpoolMemory(tmp_path, total_bytes=8_000, each_bytes=4_000)
    spool = Spool(memory)
    spool.write(bytes(4_000))
    with largest_file(1_000):
        with pytest.raises(OSError, match="File too large"):
            write_on(spool, bytes(size))
        spool.close()
    spool.close()
    assert memory.take(8_000)
