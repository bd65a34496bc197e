"""The column chunks and page headers of a Parquet file: what its pages become, before any of them is decompressed.

Source: https://github.com/apache/parquet-format, Thrift's compact protocol. The footer tells sizes, too, but nothing
holds it to the truth; readers allocate what the headers say. The footer is read here as well: pyarrow's own view of a
column chunk ends the process where statistics are damaged. Every number is a client's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from arcpipe.errors import BadPayload

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
DELTA_BYTE_ARRAY: Final = 7  # the encoding in which a few bytes repeat a long text

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST: Final = 16  # structs and lists within one another; a footer has nine levels

# Fields of PageHeader, and of the structs for each kind of page.
_KIND, _SIZE, _COMPRESSED = 1, 2, 3
_OF_KIND: Final = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
_VALUES = 1
_ENCODING: Final = {DATA_PAGE: 2, DICTIONARY_PAGE: 2, DATA_PAGE_V2: 4}


# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _META = 4, 1, 3
_CHUNK_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 7, 9, 11
_FOOTER_END_BYTES: Final = 8  # the size of the footer, and the magic


class Chunk(NamedTuple):
    """A column chunk: its place in the file, and the number of its column."""

    column: int
    start: int
    size: int


class Page(NamedTuple):
    """A page by its header."""

    kind: int
    bytes: int  # decompressed
    values: int
    encoding: int


def chunks(body: memoryview, columns: int) -> Iterator[Chunk]:
    """Walk the column chunks of a file that has so many columns.

    Raises:
        BadPayload: its footer is damaged.
    """
    try:
        size = int.from_bytes(body[-_FOOTER_END_BYTES:-4], "little")
        if size > len(body) - _FOOTER_END_BYTES:
            raise ValueError
        footer = _Reader(body[len(body) - _FOOTER_END_BYTES - size :])
        for group in footer.items_of(_ROW_GROUPS):  # one by one: a tree of millions of objects costs the collector
            found = group[_COLUMNS]
            if not isinstance(found, list) or len(found) != columns:
                raise ValueError
            for number, column in enumerate(found):
                yield _chunk(number, _fields(_fields(column)[_META]), len(body))
    except (ValueError, KeyError, IndexError):
        raise BadPayload("the footer of the Parquet file is damaged") from None


def _chunk(number: int, meta: dict[int, object], end: int) -> Chunk:
    size, *offsets = (meta.get(field) for field in (_CHUNK_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET))
    starts = [offset for offset in offsets if isinstance(offset, int) and offset > 0]
    if not isinstance(size, int) or not isinstance(offsets[0], int) or not starts or size < 0:
        raise ValueError
    if min(starts) + size > end:
        raise ValueError
    return Chunk(number, min(starts), size)


def _fields(value: object) -> dict[int, object]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def pages(data: memoryview) -> Iterator[Page]:
    """Walk the pages of a column chunk.

    Raises:
        BadPayload: a header is damaged.
    """
    reader = _Reader(data)
    while reader.at < len(data):
        try:
            header = reader.struct(0)
            kind, size, compressed = header[_KIND], header[_SIZE], header[_COMPRESSED]
            if not (isinstance(kind, int) and isinstance(size, int) and isinstance(compressed, int)):
                raise ValueError
            inner = header.get(_OF_KIND.get(kind, -1), {})
            if size < 0 or not 0 <= compressed <= len(data) - reader.at or not isinstance(inner, dict):
                raise ValueError
            values, encoding = inner.get(_VALUES, 0), inner.get(_ENCODING.get(kind, -1), 0)
            if not (isinstance(values, int) and isinstance(encoding, int)) or values < 0:
                raise ValueError
        except (ValueError, KeyError, IndexError):
            raise BadPayload("a page header of the Parquet file is damaged") from None
        yield Page(kind, size, values, encoding)
        reader.at += compressed


class _Reader:
    """Reads structs of the compact protocol: integers, structs and lists of these. Other values are skipped."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def items_of(self, field: int) -> Iterator[dict[int, object]]:
        """Read the structs of a list in a struct one by one; none if it has no such list."""
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
            self._skip(self._varint())
        elif type_ == _BYTE:
            self._skip(1)
        elif type_ == _DOUBLE:
            self._skip(8)
        elif type_ in (_LIST, _SET):
            return self._list(depth)
        else:  # a map, which no page header has, or no type
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
