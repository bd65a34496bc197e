"""The C allocator, told to keep memory: each in a process of its own, as it is told for ever. And views of memory."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcpipe.allocator import allocate
from benchmarks.worst.held import resident_bytes

MB = 1 << 20

KEEPS = "from arcpipe.allocator import keep_freed_memory; keep_freed_memory(256 << 20)"

# Takes and frees 128 MB, and prints how much of that is still resident.
FREES = """
import ctypes, gc
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident()
taken = [ctypes.c_void_p(libc.malloc(16 << 20)) for _ in range(8)]
for block in taken:
    ctypes.memset(block, 1, 16 << 20)
for block in taken:
    libc.free(block)
print(resident() - before >> 20)
"""

# Has threads allocate at the same time, and prints how many heaps that made.
THREADS = """
import ctypes, threading
libc = ctypes.CDLL(None)
for name in ("malloc", "fopen"):
    getattr(libc, name).restype = ctypes.c_void_p
meeting = threading.Barrier(8)

def take():
    libc.malloc(ctypes.c_size_t(1000))
    meeting.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.fixture(autouse=True)
def glibc() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("this is not glibc")


def said(*parts: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        check=True,
        capture_output=True,
        text=True,
        env={**variables, "PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout


def test_it_keeps_what_is_freed_only_if_told_so() -> None:
    assert int(said(FREES)) < 64
    assert int(said(KEEPS, FREES)) >= 120


def test_threads_share_one_heap_only_if_told_so() -> None:
    assert said(THREADS).count("<heap ") > 1
    assert said(KEEPS, THREADS).count("<heap ") == 1


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
