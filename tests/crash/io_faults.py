"""System calls of a real server that fail when, where and as often as a test says, while the server runs.

    faults = FaultyIO(library, tmp_path)
    server.variables |= faults.variables
    with faults.rule("read", "*/worker-*.wal*", errno.EIO, start=4096, process="*uploader*") as rule:
        wait_until(lambda: rule.hits, "a read that fails")

The library (`faulty_io.c`) is preloaded into the server's processes and compiled by the fixture `faults` of
`tests/crash/conftest.py`. It shares one page with the test: a rule is in force the moment it is set.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

# As in faulty_io.c.
_RULES: Final = 16
_RULE: Final = struct.Struct("=IIiIqqqQ192s64s")
_CALLS: Final = {
    "read": 1,
    "write": 2,
    "sync": 4,
    "truncate": 8,
    "open": 16,
    "create": 32,
    "rename": 64,
    "unlink": 128,
    "fork": 256,
}
_EFFECTS: Final = {"before": 0, "after": 1, "drop": 2}
_HITS_OFFSET: Final = 40
_FOR_EVER: Final = -1
_END: Final = (1 << 63) - 1


class Rule:
    """A fault that is in force until `end`, or until it has struck as often as it may."""

    def __init__(self, shared: mmap.mmap, slot: int) -> None:
        self._shared = shared
        self._at = slot * _RULE.size

    @property
    def hits(self) -> int:
        """Count the calls that have failed."""
        count: int = struct.unpack_from("=Q", self._shared, self._at + _HITS_OFFSET)[0]
        return count

    def end(self) -> None:
        struct.pack_into("=I", self._shared, self._at, 0)


class FaultyIO:
    """The rules of one server."""

    def __init__(self, library: Path, directory: Path) -> None:
        path = directory / "faults"
        path.write_bytes(bytes(_RULES * _RULE.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self._slots = itertools.count()
        self.variables = {"LD_PRELOAD": str(library), "FAULTY_IO": str(path)}

    def set(
        self,
        calls: str,
        path: str,
        error: int,
        *,
        process: str = "*",
        times: int = _FOR_EVER,
        start: int = 0,
        end: int = _END,
        effect: str = "before",
    ) -> Rule:
        """Has calls fail from now on.

        Args:
            calls: words of `_CALLS`; "open" is of any kind, "create" only of files that may be new.
            path: as fnmatch, for the whole path; a rename's source or target.
            process: the same for the process's title ("arcpipe: uploader").
            start, end: the bytes of the file that cannot be read or written.
            effect: "before": the call does nothing. "after": it is done, and reported as failed. "drop", of a sync:
                what it was to keep reads as zeros from now on.
        """
        slot = next(self._slots) % _RULES
        assert not struct.unpack_from("=I", self._shared, slot * _RULE.size)[0], "all rules are in force"
        names = os.fsencode(path), process.encode()
        assert len(names[0]) < 192, "faulty_io.c has no room for a longer path"
        mask = sum(_CALLS[call] for call in calls.split())
        fields = (mask, error, _EFFECTS[effect], times, start, end, 0, *names)
        _RULE.pack_into(self._shared, slot * _RULE.size, 0, *fields)
        struct.pack_into("=I", self._shared, slot * _RULE.size, 1)
        return Rule(self._shared, slot)

    @contextmanager
    def rule(self, calls: str, path: str, error: int, **options: object) -> Iterator[Rule]:
        """`set` for the time of a block."""
        rule = self.set(calls, path, error, **options)  # type: ignore[arg-type]
        try:
            yield rule
        finally:
            rule.end()


def build(folder: Path) -> Path:
    """Compiles the library; skips the test where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler here")
    library = folder / "faulty_io.so"
    source = Path(__file__).with_name("faulty_io.c")
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
