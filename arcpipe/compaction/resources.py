"""What a process that compacts takes of the machine: one core, and memory that it keeps for the next table."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from arcpipe.allocator import give_freed_memory_back, keep_freed_memory
from arcpipe.units import MB

_KEPT_BYTES: Final = 64 * MB  # of freed memory: each table takes as much again


def bound_resources() -> None:
    """Bound the process to one core, besides reads and writes of the store. Call it before threads start."""
    keep_freed_memory(_KEPT_BYTES)
    pa.set_cpu_count(1)


def give_memory_back() -> None:
    """Return freed memory to the kernel, before work that takes it in pieces of other sizes and from another heap."""
    pa.default_memory_pool().release_unused()
    give_freed_memory_back()
