"""The state of each table as the committer knows it, and the file by which others see it: `tables/state.json`.

The file is for people: status page, `arcpipe status` and `arcpipe tables show`. Nothing depends on it, so it is neither
synced nor believed after a restart.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from arcpipe.tables.base import TableName

FILENAME: Final = "state.json"
MOST_TABLES: Final = 200
"""Tables in the file; those with a problem come first."""

Kind = Literal["", "refused", "missing", "unavailable", "conflict", "bug"]
"""Why a table waits; empty if it does not."""

# Seconds before a table that failed is tried again: at first, and at most.
_FIRST_SECONDS: Final = 5.0
_MOST_SECONDS: Final = 300.0


class TableState(msgspec.Struct):
    """One table. Times are seconds since the epoch; 0: never."""

    database: str
    measurement: str
    kind: Kind = ""
    problem: str = ""
    failing_since: float = 0.0
    last_commit: float = 0.0
    commits: int = 0  # of this process
    snapshot: int = 0
    waiting_files: int = 0
    waiting_since: float = 0.0


class TablesState(msgspec.Struct, frozen=True):
    """The content of the file."""

    format: str = ""
    time: float = 0.0
    tables: int = 0
    stopped: str = ""  # why nothing at all is committed; empty if that is not so
    unreachable: str = ""
    listed: list[TableState] = []


class States:
    """The states of all tables that this process has met."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stopped = ""
        self.unreachable = ""
        self._clock = clock
        self._tables: dict[TableName, TableState] = {}
        self._failures: dict[TableName, int] = {}
        self._not_before: dict[TableName, float] = {}

    def of(self, table: TableName) -> TableState:
        """Return the state of a table."""
        state = self._tables.get(table)
        if state is None:
            state = self._tables[table] = TableState(*table)
        return state

    def is_due(self, table: TableName) -> bool:
        """Tell whether a table that failed may be tried again."""
        return self._clock() >= self._not_before.get(table, 0.0)

    def note_failure(self, table: TableName, kind: Kind, problem: str) -> bool:
        """Note that a table has to wait. Returns True if that is new."""
        state = self.of(table)
        is_new = (state.kind, state.problem) != (kind, problem)
        state.kind, state.problem = kind, problem
        state.failing_since = state.failing_since or time.time()
        if kind == "conflict":  # nothing is wrong, and whoever waits longer has more to commit: the next round tries it
            return is_new
        failures = self._failures[table] = self._failures.get(table, 0) + 1
        self._not_before[table] = self._clock() + min(_FIRST_SECONDS * 2.0 ** min(failures - 1, 16), _MOST_SECONDS)
        return is_new

    def note_success(self, table: TableName) -> None:
        """Note that nothing of a table waits any more."""
        state = self.of(table)
        state.kind, state.problem, state.failing_since = "", "", 0.0
        state.waiting_files, state.waiting_since = 0, 0.0
        self._failures.pop(table, None)
        self._not_before.pop(table, None)

    def retry_all(self) -> None:
        """Have every table tried again by the next round."""
        self._not_before.clear()

    def committed(self) -> list[TableName]:
        """Return the tables that this process has committed to."""
        return [table for table, state in self._tables.items() if state.commits]

    def problems(self) -> list[str]:
        """Return a text for each table that has to wait."""
        failing = sorted((table, state.problem) for table, state in self._tables.items() if state.kind)
        return [f"{table[0]}.{table[1]}: {problem}" for table, problem in failing]

    def count(self, *kinds: Kind) -> int:
        """Return the number of tables that wait for one of these reasons."""
        return sum(state.kind in kinds for state in self._tables.values())

    def write(self, folder: str, format_name: str) -> None:
        """Write the file. A full disk keeps the old one."""
        tables = sorted(self._tables.values(), key=lambda state: (not state.kind, state.database, state.measurement))
        content = TablesState(
            format_name, time.time(), len(tables), self.stopped, self.unreachable, tables[:MOST_TABLES]
        )
        path = os.path.join(folder, FILENAME)
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "wb") as file:
                file.write(msgspec.json.encode(content))
            os.replace(f"{path}.new", path)


def read(folder: str) -> TablesState:
    """Read the file; an empty state if there is none that can be read."""
    try:
        with open(os.path.join(folder, FILENAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=TablesState)
    except (OSError, msgspec.MsgspecError):
        return TablesState()
