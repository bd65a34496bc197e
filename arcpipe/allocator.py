"""The C allocator, told to keep what is freed: conversion and encoding take and free large arrays over and over.

By default glibc gives each of them back to the kernel and gets it again, page by page: a third of the processor time of
a conversion and of a worker that takes line protocol, and for each thread another heap with holes of its own.
"""

from __future__ import annotations

import ctypes
from typing import Final

# From malloc.h; a larger threshold than this is refused.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGEST_MMAP_THRESHOLD: Final = 32 << 20


def keep_freed_memory(size_bytes: int) -> None:
    """One heap for all threads, that keeps up to so much at its end. To be called before there are threads; elsewhere
    than on glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, size_bytes)
