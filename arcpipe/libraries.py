"""How arcpipe's own programs load libraries: without those that nobody uses, and without looks for garbage meanwhile.

Only the program calls this. Whoever imports arcpipe into a program of their own keeps that program's ways.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

# Arrow looks for pandas at the first array that it makes of Python's values, and imports it where it is installed:
# 0.35 s and 50 MB for each program, and arcpipe never uses it.
_UNUSED: Final = "pandas"


class _LeftOut:
    """A finder of modules that says of the unused library that it is not installed."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _UNUSED:
            raise ModuleNotFoundError(f"arcpipe runs without {name}", name=name)
        return None


def leave_out_unused() -> None:
    """Have this process run as if libraries that arcpipe never uses were not installed."""
    sys.meta_path.insert(0, _LeftOut)


def have_one_thread() -> None:
    """Keep libraries from starting threads when they are loaded, because a process that forks should have only one.

    Numpy's linear algebra and Arrow's second allocator would do so; neither is used here.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries that stay for ever, and take them out of garbage collection, here and in later children.

    A collection during the load finds next to nothing, in 0.1 s and more. A later one writes into each object that it
    looks at; a child would get a copy of nearly every page of them, which is 10 MB and more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
