"""The column chunks and page headers of a Parquet file: what its pages become, before any of them is decompressed.

Source: https://github.com/apache/parquet-format, Thrift's compact protocol. The footer tells sizes, too, but nothing
holds it to the truth; readers allocate what the headers say. The footer is read here as well: pyarrow's own view of a
column chunk ends the process where statistics are damaged. Every number is a client's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from arcpipe.codec.thrift import CompactReader
from arcpipe.errors import BadPayload

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
DELTA_BYTE_ARRAY: Final = 7  # the encoding in which a few bytes repeat a long text

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
        footer = CompactReader(body[len(body) - _FOOTER_END_BYTES - size :])
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
    reader = CompactReader(data)
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
