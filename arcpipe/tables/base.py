"""The protocol that every table format has, and its errors: one per consequence, not one per cause.

    marker = tables.committed(table, node)
    if marker is None or marker < seq:
        tables.commit(table, files, node, seq)  # one attempt; raises Conflict, Unavailable or Refused

A **marker** is the highest `seq` of a node that a table holds. It changes in the same atomic commit that adds the
node's files, so that either both are there or neither is. A commit is attempted once, on exactly the state of the table
that its marker was read from. Whoever fails begins again by reading the marker: no answer has to be believed.

This package must not know batches, uploaders or processes. Its libraries (pyiceberg, deltalake) are imported by its
subpackages only, in the process that commits, because deltalake cannot be used after a fork.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from arcpipe.errors import ArcpipeError

AT_ONCE: Final = 8
"""Tables that are committed to at once where commits wait for a server: at 20 ms a request this keeps a core busy."""

TableName = tuple[str, str]
"""Database and measurement, as clients call them."""


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # Hadoop writes `file:/path`


def is_outside(key: str) -> bool:
    """Tell whether a file of a table is outside of the store: it has an absolute URI then, and no key."""
    return _SCHEME.match(key) is not None


class TableError(ArcpipeError):
    """A table could not be read or changed. The text says which one, why, and what to do."""


class Conflict(TableError):
    """Somebody else changed the table first, so nothing happened. Begin again by reading the marker, soon."""


class Unavailable(TableError):
    """Catalogue or store did not answer as it should. Nothing happened, or all of it: read the marker, later."""


class Refused(TableError):
    """It will not succeed until a person changes something; nothing happened.

    Attributes:
        column: the name of the column whose types differ; empty if something else is the reason.
        table_type: its type in the table, as Arrow writes it.
        file_type: its type in the file.
        key: the file, if one is the reason.
    """

    def __init__(
        self, message: str, *, column: str = "", table_type: str = "", file_type: str = "", key: str = ""
    ) -> None:
        super().__init__(message)
        self.column = column
        self.table_type = table_type
        self.file_type = file_type
        self.key = key


class Dropped(TableError):
    """There is no such table, where one has to be: of files(), replace(), remove(), maintain()."""


class Older(TableError):
    """The catalogue is older than the tables that it has: nothing may be committed to any of them."""


UnreadableTables = dict[TableName, TableError]
"""Why tables cannot be read, by the name that catalogue or store tell; `("", folder)` if they tell a folder only."""


class NewFile(NamedTuple):
    """A Parquet file in the store that no table holds yet."""

    key: str  # in the store, such as "default/cpu/2026/11/29/06/cpu_….parquet"
    size: int  # bytes
    rows: int
    metadata: Any  # its footer, a pyarrow.parquet.FileMetaData, as it was read from the store


class Committed(NamedTuple):
    """The result of a commit."""

    seq: int  # this node's marker now
    snapshot: int  # the table's state: Iceberg's snapshot id, Delta's version
    files: int  # how many were added; 0 if the marker showed that they were there already
    created: bool = False  # whether there was no table before


class Maintained(NamedTuple):
    """The result of the upkeep of one table."""

    merged: int = 0  # metadata files that became fewer: Iceberg's manifests, Delta's log entries in a checkpoint
    expired: int = 0  # earlier states that are not readable any more
    deleted: int = 0  # objects that were deleted, metadata and data files together


class Column(NamedTuple):
    """A column as a table has it."""

    name: str
    type: str  # one of arcpipe's words (i64, u64, f64, bool, str, bytes, time), or the format's own for others
    present: str = ""  # of a former name: the column's name since a person renamed it; files may have both
    is_dropped: bool = False  # by a person; files have it, so that it can come back with this type only


class TableFormat(Protocol):
    """Tables of one format in one catalogue or store. It blocks. `at_once` threads may call it, for different tables.

    Every method may raise Unavailable. Whatever a library raises becomes an error of this module.
    """

    @property
    def name(self) -> str:
        """Return the setting's word: "iceberg" or "delta"."""
        ...

    @property
    def at_once(self) -> int:
        """Return how many threads may call it at once: 1, or as many as make a difference where requests take time."""
        ...

    def check(self) -> None:
        """Prove that the catalogue answers, the warehouse can be written, and the format takes these settings.

        Raises:
            Refused: it does not work, and the text says what to change.
            Unavailable: something does not answer.
        """
        ...

    def close(self) -> None:
        """Release connections. May be called twice."""
        ...

    def committed(self, table: TableName, node: str) -> int | None:
        """Load the table fresh, and return the node's marker; None if there is no table or no marker.

        Raises:
            Refused: the table is there, and cannot be used.
        """
        ...

    def left_behind(self, table: TableName, node: str) -> int | None:
        """Return the node's marker of a table that is in the store, and which the catalogue does not know.

        It was dropped, or the catalogue is older than the table. None if the store tells nothing.
        """
        ...

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        """Add files, and set the node's marker, in one atomic commit and one attempt.

        Loads the table fresh and reads the marker again: if that is `seq` or more, nothing is done. Makes the table if
        it is missing. Adds columns that the files have and the table has not, before the files or with them.

        Raises:
            Conflict: somebody else committed first, and nothing happened.
            Refused: a column's types differ, the table is no one that arcpipe can append to, or access is denied.
            Unavailable: nothing happened, or all of it.
        """
        ...

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        """Return the tables that are arcpipe's, sorted.

        Args:
            unreadable: gets those that cannot be read, so that nobody knows whether they are arcpipe's.

        Raises:
            TableError: the catalogue or the store does not answer; or a table cannot be read, and `unreadable` is None.
        """
        ...

    def columns(self, table: TableName) -> list[Column]:
        """Return the columns of the table; empty if there is no table."""
        ...

    def files(self, table: TableName) -> Iterator[str]:
        """Yield the keys of the files that the table holds now; the absolute URI of a file outside of the store.

        Raises:
            Dropped: there is no table.
        """
        ...

    def former(self, table: TableName) -> set[str]:
        """Return the keys of files that an earlier state has, which is still readable, and the present one has not.

        Somebody took them out: a compaction, a delete, retention. Their objects are still there for readers of that
        state; to add them again would double their rows. Empty if there is no table.
        """
        ...

    def markers(self, table: TableName) -> dict[str, int]:
        """Return the marker of each node; empty if there is no table."""
        ...

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        """Take files out of the table and add others with the same rows, in one atomic commit and one attempt.

        Markers stay. The old objects stay, too, until `maintain` finds that no readable state needs them.

        Raises:
            Conflict: somebody else committed first, or an old file is not in the table any more. Nothing happened.
            Dropped: there is no table.
        """
        ...

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        """Take files with their rows out of the table, in one atomic commit and one attempt: for retention.

        The objects stay until `maintain` finds that no readable state needs them. A key that is not there is no error.

        Raises:
            Conflict: somebody else committed first. Nothing happened.
            Dropped: there is no table.
        """
        ...

    def maintain(self, table: TableName) -> Maintained:
        """Merge metadata, expire earlier states after `tables.history_hours`, and delete what nothing refers to.

        Others may do the same at once. Never deletes an object of which it cannot prove that it was in an expired
        state of this table, nor one that is young, so a file that waits for its commit is safe.

        Raises:
            Conflict: somebody else committed first; the next time will do.
            Dropped: there is no table.
        """
        ...
