"""Settings of glibc's allocator: keep freed memory, because conversion and encoding allocate large arrays repeatedly.

By default glibc returns each large array to the kernel and gets it again page by page. That takes a third of the
processor time of a conversion, and of a worker that reads line protocol. Each thread also gets its own fragmented heap.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Final

# Option numbers of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGEST_MMAP_THRESHOLD: Final = 32 << 20  # bytes; glibc refuses a higher one

_libc: Final = ctypes.CDLL(None)
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None


def keep_freed_memory(size_bytes: int) -> None:
    """Use one malloc arena and keep up to `size_bytes` of freed memory at its top.

    Call it before starting threads. Without glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, size_bytes)


def allocate(size_bytes: int) -> memoryview:
    """Return memory that is not cleared, and that the kernel gives page by page where it is written first.

    Note: `bytearray` clears all of it. Numpy asks for huge pages, of which one byte takes 2 MB. Arrow aligns it, which
    leaves small holes that soon keep freed blocks of one size from being used again.

    Raises:
        MemoryError: there is no address space for it.
    """
    address = _libc.malloc(size_bytes)
    if not address:
        raise MemoryError(f"no memory for {size_bytes} bytes")
    block = (ctypes.c_ubyte * size_bytes).from_address(address)
    weakref.finalize(block, _libc.free, address).atexit = False  # views keep the block
    return memoryview(block).cast("B")


def give_freed_memory_back() -> None:
    """Return freed memory to the kernel, as far as it can be. Without glibc it does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
