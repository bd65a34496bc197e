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
from arcpipe.upload.fronts import Front, front_of
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
    front: Front


class Found(NamedTuple):
    """The columns of an entry."""

    key: GroupKey
    shape: EntryShape
    front: Front
    rows: int
    places: bytes  # where each column begins and ends in the payload, in 64 bits each


class _Heads:
    """The layouts whose first literals have one size, and an idempotency key at one place, or none."""

    __slots__ = ("key", "layouts", "size")

    def __init__(self, size: int, key: range) -> None:
        self.size = size
        self.key = key
        self.layouts: dict[bytes, Layout] = {}  # by the first literal without the key

    def without_key(self, head: bytes) -> bytes:
        return head[: self.key.start] + head[self.key.stop :]


class Layouts:
    """Learns the layouts of entries, and finds the columns of others by them. For the entries of one batch."""

    __slots__ = ("_find", "_heads", "_known", "_learned", "_missed")

    def __init__(self) -> None:
        self._find: Callable[..., Any] | None = None if native.KERNEL is None else native.KERNEL.find_columns
        self._heads: list[_Heads] = []  # that of the last entry first
        self._known = 0  # layouts
        self._learned = 0
        self._missed = 0

    def find(self, payload: bytes | memoryview) -> Found | None:
        """Find the columns of an entry; None if it has no known layout."""
        if self._find is None:
            return None
        for number, heads in enumerate(self._heads):
            head = bytes(payload[: heads.size])
            key = heads.key
            layout = heads.layouts.get(heads.without_key(head) if key else head)
            if layout is None or (key and not head[key.start : key.stop].isascii()):
                continue
            if number:
                self._heads.insert(0, self._heads.pop(number))
            found = self._find(payload, (head, *layout.literals[1:]) if key else layout.literals)
            return None if found is None else Found(layout.key, layout.shape, layout.front, *found)
        return None

    def learn(self, payload: bytes | memoryview, envelope: Envelope) -> bool:
        """Learn the layout of an entry that was decoded, if others may have it, too; return whether it did."""
        if self._find is None:
            return False
        self._missed += 1
        if self._learned >= _LEARN_FIRST + self._missed // _LEARN_EVERY:
            return False
        columns = envelope.body
        if envelope.kind != KIND_COLUMNAR or columns.__class__ is not ColumnMap or envelope.meta.clock:
            return False
        self._learned += 1
        literals = _literals(payload, columns)
        front = front_of(literals[0]) if literals else None
        if front is None:
            return False
        heads = self._heads_of(len(literals[0]), front.key)
        if heads is None:
            return False
        if self._known >= _MOST_KNOWN:
            self._known = 0
            for each in self._heads:
                each.layouts.clear()
        # The columns of a shape are names alone; its values are not kept.
        shape = EntryShape(envelope.database, envelope.meta.precision, columns)
        group = group_key(envelope.database, envelope.meta.precision, columns)
        head = heads.without_key(literals[0])
        self._known += head not in heads.layouts
        heads.layouts[head] = Layout(literals, group, shape, front)
        return True

    def _heads_of(self, size: int, key: range) -> _Heads | None:
        """Return the layouts of a size and a place; None if there are too many of these."""
        for heads in self._heads:
            if (heads.size, heads.key) == (size, key):
                return heads
        if len(self._heads) == _MOST_SIZES:
            return None
        self._heads.insert(0, _Heads(size, key))
        return self._heads[0]


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
