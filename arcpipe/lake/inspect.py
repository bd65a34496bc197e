"""Look at the files of a lake: list them, read their footers and rows, and check them against their names.

Nothing is changed, so it may be done while servers upload. A file may then vanish between the list and the look at it:
it was compacted. This module must not know how anything is printed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arcpipe.codec.columns import TIME
from arcpipe.errors import MissingObject
from arcpipe.lake import footers
from arcpipe.lake.file_schema import BATCH, DATABASE, HOUR_US, MEASUREMENT, TIME_TYPE
from arcpipe.lake.folders import SUFFIX, FileName, Folder, parse_file_name, parse_folder
from arcpipe.lake.footer_check import check_file
from arcpipe.lake.footers import Unreadable, readable
from arcpipe.lake.keys import database_components, encode_database, encode_name, measurement_components
from arcpipe.storage import LakeStore, Listed
from arcpipe.units import MB

_PART_BYTES: Final = 8 * MB  # read at once of a whole file
_BATCH_ROWS: Final = 131_072  # decoded at once: bounds the memory of a row group whatever its file says


class StoredFile(NamedTuple):
    """A file whose key is of arcpipe's form."""

    listed: Listed
    folder: Folder
    name: FileName

    @property
    def key(self) -> str:
        return self.listed.key


class Footer(NamedTuple):
    """What the footer of a file says."""

    rows: int
    first_us: int  # µs since the epoch: the least and the greatest time
    last_us: int


class Checked(NamedTuple):
    """The result of reading a whole file."""

    rows: int
    problems: list[str]


async def list_files(store: LakeStore, prefix: str) -> AsyncIterator[tuple[list[StoredFile], list[Listed]]]:
    """Yield the files below a prefix, page by page: those of arcpipe, and other objects outside of hidden folders.

    Raises:
        StorageError: the list is incomplete.
    """
    async for page in store.list_objects(prefix):
        found: list[StoredFile] = []
        others: list[Listed] = []
        for listed in page:
            if listed.key[0] in "._":  # of arcpipe itself
                continue
            path, _, filename = listed.key.rpartition("/")
            folder = parse_folder(path)
            name = parse_file_name(filename, folder) if folder is not None and filename.endswith(SUFFIX) else None
            if folder is None or name is None:
                others.append(listed)
            else:
                found.append(StoredFile(listed, folder, name))
        yield found, others


async def read_footer(store: LakeStore, file: StoredFile) -> Footer | None:
    """Read the footer of a file; None if the file is gone.

    Raises:
        Unreadable: it is no file of arcpipe's.
        StorageError: the store does not give it.
    """
    try:
        metadata = await footers.read_footer(store, file.key, file.listed.size)
    except MissingObject:
        return None
    with readable(file.key):
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        at = metadata.schema.to_arrow_schema().get_field_index(TIME)
        times = [group.column(at).statistics for group in groups] if at >= 0 else []
        if not times or any(of is None or not of.has_min_max for of in times):
            raise Unreadable(f"{file.key}: its footer does not say its times")
        first, last = min(of.min for of in times), max(of.max for of in times)
    return Footer(metadata.num_rows, _us(first), _us(last))


async def read_file(store: LakeStore, file: StoredFile) -> pa.Buffer | None:
    """Read a whole file into memory; None if it is gone.

    Raises:
        StorageError: the store does not give it.
    """
    sink = pa.BufferOutputStream()
    try:
        for offset in range(0, file.listed.size, _PART_BYTES):
            sink.write(await store.read(file.key, offset, min(_PART_BYTES, file.listed.size - offset)))
    except MissingObject:
        return None
    return sink.getvalue()


def last_rows(data: pa.Buffer, key: str, count: int) -> pa.Table:
    """Return the rows of a file with the latest times, the latest first.

    Raises:
        Unreadable: it is no Parquet file that can be read.
    """
    with readable(key):
        file = pq.ParquetFile(pa.BufferReader(data))
        if TIME not in file.schema_arrow.names:
            raise Unreadable(f"{key}: it has no column {TIME!r}")
        kept = file.schema_arrow.empty_table()
        for batch in file.iter_batches(_BATCH_ROWS):
            table = pa.concat_tables([kept, pa.Table.from_batches([batch])])
            order = pc.select_k_unstable(table, min(count, len(table)), [(TIME, "descending")])
            kept = table.take(order)
    return kept


def check(data: pa.Buffer, file: StoredFile) -> Checked:
    """Read every value of a file, and compare it with its name and its footer."""
    problems: list[str] = []
    try:
        with readable(file.key):
            return _check(data, file, problems)
    except Unreadable as error:
        return Checked(0, [*problems, str(error).removeprefix(f"{file.key}: ")])


def _check(data: pa.Buffer, file: StoredFile, problems: list[str]) -> Checked:
    parquet = pq.ParquetFile(pa.BufferReader(data))
    check_file(pa.BufferReader(data), parquet.metadata)
    schema, metadata = parquet.schema_arrow, parquet.metadata
    problems += _problems_of_names(schema, file)
    if TIME not in schema.names or schema.field(TIME).type != TIME_TYPE:
        return Checked(metadata.num_rows, [*problems, f"it has no column {TIME!r} of type {TIME_TYPE}"])
    rows, first, last, nulls = 0, 2**63 - 1, -(2**63), 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        order = [(schema.names[of.column_index], of.nulls_first) for of in group.sorting_columns if not of.descending]
        before: pa.Table | None = None
        counted = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[number]):
            table = pa.Table.from_batches([batch])
            counted += len(table)
            nulls += table.column(TIME).null_count
            times = table.column(TIME).cast(pa.int64()).drop_null().to_numpy()
            first, last = min(first, int(times.min(initial=first))), max(last, int(times.max(initial=last)))
            if order and not _is_sorted(table if before is None else pa.concat_tables([before, table]), order):
                problems.append(f"row group {number} is not sorted by {', '.join(name for name, _ in order)}")
                order = []
            before = table.slice(len(table) - 1)
        if counted != group.num_rows:
            problems.append(f"row group {number} has {counted} rows, and its footer says {group.num_rows}")
        rows += counted
    if rows != metadata.num_rows:
        problems.append(f"it has {rows} rows, and its footer says {metadata.num_rows}")
    if not rows:
        return Checked(0, [*problems, "it has no rows"])
    if nulls:
        problems.append(f"{nulls} rows have no time")
    problems += _problems_of_times(parquet, file, first, last)
    return Checked(rows, problems)


def _problems_of_names(schema: pa.Schema, file: StoredFile) -> list[str]:
    said = schema.metadata or {}
    try:
        database, measurement, batch = (said[key].decode() for key in (DATABASE, MEASUREMENT, BATCH))
    except (KeyError, UnicodeDecodeError):
        return ["arcpipe did not write it: its footer names no database, measurement or batch"]
    problems = []
    folder = file.folder
    if folder.database not in (*database_components(database), encode_database(database, ".")):
        problems.append(f"it is of the database {database!r}, and not of its folder's")
    if folder.measurement not in (*measurement_components(measurement), encode_name(measurement, ".")):
        problems.append(f"it is of the measurement {measurement!r}, and not of its folder's")
    if batch != file.name.batch:
        problems.append(f"it is of the batch {batch}, and not of its name's")
    if len({name.casefold() for name in schema.names}) < len(schema.names):
        problems.append("it has two columns whose names differ in case only")
    return problems


def _problems_of_times(parquet: Any, file: StoredFile, first: int, last: int) -> list[str]:
    problems = []
    hour = file.folder.hour_us
    if first < hour or last >= hour + HOUR_US:
        problems.append("it has rows of another hour than its folder's")
    if not first <= file.name.first_us <= last:
        problems.append("the time in its name is not between those of its rows")
    metadata = parquet.metadata
    at = parquet.schema_arrow.get_field_index(TIME)
    told = [metadata.row_group(number).column(at).statistics for number in range(metadata.num_row_groups)]
    known = [of for of in told if of is not None and of.has_min_max]
    if len(known) == len(told) and (min(_us(of.min) for of in known), max(_us(of.max) for of in known)) != (
        first,
        last,
    ):
        problems.append("its footer says other times than its rows have")
    return problems


def _is_sorted(table: pa.Table, order: list[tuple[str, bool]]) -> bool:
    """Tell whether rows ascend by these columns, each with whether its nulls come first."""
    equal = np.ones(max(len(table) - 1, 0), np.bool_)  # a row and the next one, in the columns so far
    for name, nulls_first in order:
        column = table.column(name).combine_chunks()
        this, following = column.slice(0, len(equal)), column.slice(1)
        greater = pc.greater(this, following).fill_null(False).to_numpy(zero_copy_only=False)
        same = pc.equal(this, following).fill_null(False).to_numpy(zero_copy_only=False)
        null, next_null = (part.is_null().to_numpy(zero_copy_only=False) for part in (this, following))
        greater |= (next_null & ~null) if nulls_first else (null & ~next_null)
        if (equal & greater).any():
            return False
        equal &= same | (null & next_null)
    return True


def _us(time: Any) -> int:
    """Convert a time of statistics into µs since the epoch."""
    return int(np.datetime64(time.replace(tzinfo=None), "us").astype(np.int64))
