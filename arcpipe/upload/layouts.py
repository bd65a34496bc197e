"""Find the columns of an entry by the layout of an entry before it, without decoding it: by the native kernel.

Most large entries of a table differ in the values of their columns alone. The bytes before, between and after these are
the layout. An entry has it if it is those bytes and, between them, arrays of flat values, each with as many of them.
Then msgspec would find the same columns in it. The proof covers every byte; an entry that does not pass it is decoded.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from arcpipe import native
from arcpipe.codec.envelope import KIND_COLUMNAR, ColumnMap, Envelope
from arcpipe.upload.outlines import address_of
from arcpipe.upload.staging import EntryShape, GroupKey, group_key

# Layouts that are kept; beyond them, all are learned again. The sizes of their first literals are tried in turn.
_MOST_KNOWN: Final = 1_024
_MOST_SIZES: Final = 8
# Learning a layout takes as long as decoding an entry. So only the first entries are learned, and then one of eight.
_LEARN_EVERY: Final = 8
_LEARN_FIRST: Final = 16


class Layout(NamedTuple):
    """The bytes around the columns of an entry, and the group that it belongs to."""

    literals: tuple[bytes, ...]  # before, between and after the columns
    key: GroupKey
    shape: EntryShape


class Found(NamedTuple):
    """The columns of an entry."""

    key: GroupKey
    shape: EntryShape
    rows: int
    places: bytes  # where each column begins and ends in the payload, in 64 bits each


class Layouts:
    """Learns the layouts of entries, and finds the columns of others by them. For the entries of one batch."""

    __slots__ = ("_find", "_known", "_learned", "_missed", "_sizes")

    def __init__(self) -> None:
        self._find: Callable[..., Any] | None = None if native.KERNEL is None else native.KERNEL.find_columns
        self._known: dict[bytes, Layout] = {}  # by the first literal
        self._sizes: list[int] = []  # of the first literals, that of the last entry first
        self._learned = 0
        self._missed = 0

    def find(self, payload: bytes | memoryview) -> Found | None:
        """Find the columns of an entry; None if it has no known layout."""
        if self._find is None:
            return None
        for number, size in enumerate(self._sizes):
            layout = self._known.get(bytes(payload[:size]))
            if layout is None:
                continue
            if number:
                self._sizes.insert(0, self._sizes.pop(number))
            found = self._find(payload, layout.literals)
            return None if found is None else Found(layout.key, layout.shape, *found)
        return None

    def learn(self, payload: bytes | memoryview, envelope: Envelope) -> bool:
        """Learn the layout of an entry that was decoded, if others may have it, too; return whether it did."""
        if self._find is None:
            return False
        self._missed += 1
        if self._learned >= _LEARN_FIRST + self._missed // _LEARN_EVERY:
            return False
        columns = envelope.body
        meta = envelope.meta
        if envelope.kind != KIND_COLUMNAR or columns.__class__ is not ColumnMap or meta.key is not None or meta.clock:
            return False
        self._learned += 1
        literals = _literals(payload, columns)
        if not literals:
            return False
        size = len(literals[0])
        if size not in self._sizes:
            if len(self._sizes) == _MOST_SIZES:
                return False
            self._sizes.insert(0, size)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        # The columns of a shape are names alone; its values are not kept.
        shape = EntryShape(envelope.database, meta.precision, columns)
        self._known[literals[0]] = Layout(literals, group_key(envelope.database, meta.precision, columns), shape)
        return True


def _literals(payload: bytes | memoryview, columns: ColumnMap) -> tuple[bytes, ...]:
    """Cut the bytes around columns out of a payload; nothing if these are not one after the other."""
    base = address_of(payload)
    at = 0
    literals = []
    for raw in columns.columns.values():
        start = address_of(raw) - base
        if start < at:
            return ()
        literals.append(bytes(payload[at:start]))
        at = start + len(raw)
    return (*literals, bytes(payload[at:])) if literals else ()
