"""Thrift's compact protocol, as the footers and page headers of Parquet files have it.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Every number is a client's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST: Final = 16  # structs and lists within one another; a footer has nine levels


class Binary(NamedTuple):
    """A text or binary value, which is skipped."""

    size: int


class CompactReader:
    """Read structs: integers, structs, lists of these, and the sizes of binary values. Other values are None."""

    def __init__(self, data: memoryview) -> None:
        """Begin at the first byte of `data`."""
        self._data = data
        self.at = 0

    def items_of(self, field: int) -> Iterator[dict[int, object]]:
        """Read the structs of a list in a struct one by one; none if it has no such list. Raises as `struct` does."""
        last = 0
        while head := self._byte():
            delta = head >> 4
            last = last + delta if delta else self._zigzag()
            if last != field:
                self._value(head & 0x0F, 0)
                continue
            if head & 0x0F != _LIST:
                raise ValueError
            type_, count = self._list_head()
            if type_ != _STRUCT:
                raise ValueError
            for _ in range(count):
                yield self.struct(1)

    def struct(self, depth: int) -> dict[int, object]:
        """Read a struct: its fields by id. Raises ValueError or IndexError if it is damaged."""
        if depth > _DEEPEST:
            raise ValueError
        fields: dict[int, object] = {}
        last = 0
        while True:
            head = self._byte()
            if not head:
                return fields
            type_ = head & 0x0F
            delta = head >> 4
            last = last + delta if delta else self._zigzag()
            if last in fields:  # readers differ in which one counts
                raise ValueError
            fields[last] = self._value(type_, depth)

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self.at:
            raise ValueError
        self.at += count

    def _value(self, type_: int, depth: int) -> object:
        if type_ in (_TRUE, _FALSE):
            return None
        if type_ in (_I16, _I32, _I64):
            return self._zigzag()
        if type_ == _STRUCT:
            return self.struct(depth + 1)
        if type_ == _BINARY:
            size = self._varint()
            self._skip(size)
            return Binary(size)
        if type_ == _BYTE:
            self._skip(1)
        elif type_ == _DOUBLE:
            self._skip(8)
        elif type_ in (_LIST, _SET):
            return self._list(depth)
        else:  # a map, which Parquet has nowhere, or no type
            raise ValueError
        return None

    def _list(self, depth: int) -> list[object]:
        type_, count = self._list_head()
        if type_ in (_TRUE, _FALSE):
            self._skip(count)
            return []
        return [self._value(type_, depth + 1) for _ in range(count)]

    def _list_head(self) -> tuple[int, int]:
        """Read the head of a list: the type of its items, and their number."""
        head = self._byte()
        count = head >> 4
        if count == 15:
            count = self._varint()
        if count > len(self._data) - self.at:
            raise ValueError
        return head & 0x0F, count
