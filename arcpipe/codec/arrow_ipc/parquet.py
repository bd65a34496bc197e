"""A Parquet file in a request -> an Arrow IPC stream, which is checked and kept like any other.

Parquet packs much tighter than a compressor: a run of a billion equal values is a few bytes. So the headers of all
pages are read first (`parquet_pages`), texts stay in their dictionaries, rows come in small batches, and the stream
that they become is measured while it grows. Rows of a file that packs very tight are compressed again, with LZ4.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.arrow_ipc.parquet_pages import DELTA_BYTE_ARRAY, DICTIONARY_PAGE, Chunk, chunks, pages
from arcpipe.codec.columns import quote
from arcpipe.codec.effort import Check, go_on
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.units import KB, MB

_MAGIC: Final = b"PAR1"
_ROWS: Final = 65_536  # of a batch: bounds the memory of rows that are decoded at a time
_STRING_LIMIT: Final = 8 * MB  # of texts in the footer
_CONTAINER_LIMIT: Final = 1_000_000  # of lists in the footer
# Pages and column chunks that any file may have, and bytes of the file for each further one: each takes some 20 µs.
_FREE_PAGES: Final = 32_768
_BYTES_PER_PAGE: Final = 512
_PAGES_BETWEEN_CHECKS: Final = 63  # a mask
# Times as many bytes as the file has, above which its rows are compressed again: a file of a few kilobytes would become
# an entry of 90 MB, and everybody who writes meanwhile would wait until it is on disk.
_EXPANDED: Final = 4
_SECONDS: Final = 1.0  # that a step may take, whatever the size of the file
_NESTED_BYTES: Final = 16  # of a nested value and its levels
_MAX_FIXED_BYTES: Final = KB  # of a value of fixed size: a batch of them stays below 64 MB


def parquet_stream(body: bytes | memoryview, max_bytes: int, check: Check = go_on) -> memoryview:
    """Make the rows of a Parquet file an Arrow IPC stream.

    Args:
        max_bytes: of its pages, once they are decompressed, and of the stream, before it is compressed.
        check: as in `arcpipe.codec.effort`.

    Raises:
        BadPayload: it is no file that can be read.
        PayloadTooLarge: it becomes too large.
    """
    if not (body[: len(_MAGIC)] == _MAGIC == body[-len(_MAGIC) :]):
        raise BadPayload("the body is no Parquet file: it does not begin and end with PAR1")
    check(_SECONDS)
    try:
        file = _open(body, [])
        found = _Pages(memoryview(body), file.schema, max_bytes)
        found.check_all(check)
        check(0.0, found.bytes)
        return _write(_open(body, list(found.texts)), len(body), max_bytes, check)
    except UnicodeDecodeError:
        raise BadPayload("a name in the Parquet file is not valid UTF-8") from None
    except (pa.ArrowException, OSError) as error:  # OSError for damage: nothing is read from a disk here
        reason = str(error).partition("\n")[0][:200]
        raise BadPayload(f"the Parquet file cannot be read: {reason}") from None


def _open(body: bytes | memoryview, dictionaries: list[str]) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(body),
        read_dictionary=dictionaries,
        coerce_int96_timestamp_unit="us",  # in ns, years before 1678 and after 2261 would become others
        thrift_string_size_limit=_STRING_LIMIT,
        thrift_container_size_limit=_CONTAINER_LIMIT,
    )


def _is_long(leaf: pq.ColumnSchema) -> bool:
    """Tell whether the values of a column may be of any length."""
    return bool(leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL")


def _is_flat(leaf: pq.ColumnSchema) -> bool:
    return bool(leaf.max_repetition_level == 0 and leaf.path == leaf.name)


def _write(file: pq.ParquetFile, body_bytes: int, max_bytes: int, check: Check) -> memoryview:
    sink, decoded = pa.BufferOutputStream(), pa.MockOutputStream()
    schema = file.schema_arrow.remove_metadata()
    batches = (one.replace_schema_metadata(None) for one in file.iter_batches(_ROWS, use_threads=False))
    batch = next(batches, None)
    options = pa.ipc.IpcWriteOptions()
    if batch is not None and batch.nbytes * file.metadata.num_rows > _EXPANDED * body_bytes * len(batch):
        options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, schema, options=options) as writer, pa.ipc.new_stream(decoded, schema) as meter:
        while batch is not None:
            check()
            meter.write_batch(batch)
            if decoded.tell() > max_bytes:
                raise PayloadTooLarge(f"the Parquet file has more than {max_bytes} bytes once it is decoded")
            writer.write_batch(batch)
            batch = next(batches, None)
    return memoryview(sink.getvalue())


class _Pages:
    """Checks what the pages of a file become."""

    def __init__(self, body: memoryview, schema: pq.ParquetSchema, max_bytes: int) -> None:
        self._body = body
        self._leaves = [schema.column(at) for at in range(len(schema.names))]
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._left_of_nested = max_bytes
        self._left_pages = _FREE_PAGES + len(body) // _BYTES_PER_PAGE
        self.texts: dict[str, None] = {}
        """The columns whose values may be long, and repeated by a few bytes: they are read as dictionaries."""

    @property
    def bytes(self) -> int:
        """What the pages may become, once all are checked."""
        return 2 * self._max_bytes - self._left - self._left_of_nested

    def check_all(self, check: Check) -> None:
        """Check the pages of all column chunks. Raises BadPayload or PayloadTooLarge."""
        for leaf in self._leaves:
            if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length > _MAX_FIXED_BYTES:
                raise BadPayload(f"column {quote(leaf.path)} has values of {leaf.length} bytes each")
        for chunk in chunks(self._body, len(self._leaves)):
            check()
            self._check_chunk(chunk, self._leaves[chunk.column], check)

    def _check_chunk(self, chunk: Chunk, leaf: pq.ColumnSchema, check: Check) -> None:
        name = quote(leaf.path)
        self._left_pages -= 1
        values = dictionary_bytes = 0
        for number, page in enumerate(pages(self._body[chunk.start : chunk.start + chunk.size])):
            if number & _PAGES_BETWEEN_CHECKS == _PAGES_BETWEEN_CHECKS:
                check()
            self._left_pages -= 1
            self._left -= page.bytes
            if page.encoding == DELTA_BYTE_ARRAY:
                raise BadPayload(f"column {name} has the encoding DELTA_BYTE_ARRAY, which is not taken")
            if page.kind == DICTIONARY_PAGE:
                dictionary_bytes += page.bytes
            else:
                values += page.values
            if self._left < 0:
                raise PayloadTooLarge(f"the Parquet file has more than {self._max_bytes} bytes once it is decompressed")
            if self._left_pages < 0:
                raise BadPayload("the Parquet file has too many pages for its size")
        if dictionary_bytes and _is_long(leaf) and _is_flat(leaf):
            self.texts[leaf.path] = None
        if not _is_flat(leaf):  # its values are decoded together, and without a dictionary, of which no value is longer
            self._left_of_nested -= values * (_NESTED_BYTES + (dictionary_bytes if _is_long(leaf) else 0))
            if self._left_of_nested < 0:
                raise PayloadTooLarge(f"the nested column {name} may become too large; send an Arrow IPC stream")
