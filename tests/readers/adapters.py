"""How each reader opens a folder of the lake: one function a reader, as its documentation says to do it.

A reader may be told that columns come and go between files and that folders are nested, but no type of any column. It
returns rows of plain Python values in any order. A folder is that of a database, which has one measurement.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from tests.readers.model import Row

_AS_THEY_ARE: Final = frozenset({bool, bytes, float, int, str, type(None)})


def plain(value: Any) -> Any:
    """Make a reader's value the model's: aware datetimes in UTC, whole decimals as int."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return value


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def _rows_of_arrow(table: pa.Table) -> list[Row]:
    columns = [list(map(plain, column.to_pylist())) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def is_hive(folder: Path) -> bool:
    return any(child.is_dir() for child in folder.rglob("year=*"))


def read_duckdb(folder: Path) -> list[Row]:
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        pattern, hive = f"{folder}/**/*.parquet", is_hive(folder)
        found = connection.read_parquet(pattern, union_by_name=True, hive_partitioning=hive)
        return _rows_of_arrow(found.to_arrow_table())


def read_polars(folder: Path) -> list[Row]:
    import polars as pl

    # What one file lacks others may have; a type is that of the first file.
    frames = [pl.scan_parquet(path, hive_partitioning=is_hive(folder)) for path in sorted(folder.rglob("*.parquet"))]
    return plain_rows(pl.concat(frames, how="diagonal").collect().to_dicts())


def _schema(folder: Path) -> pa.Schema:
    """Unite the columns of all files that pyarrow finds, and of the paths, without changing any type."""
    import pyarrow.dataset as pad
    import pyarrow.parquet as pq

    found = pad.dataset(folder, partitioning="hive")
    schemas = [pq.read_schema(path) for path in found.files]
    paths = [field for field in found.partitioning.schema if all(field.name not in schema.names for schema in schemas)]
    return pa.unify_schemas([*schemas, pa.schema(paths)])


def read_pyarrow(folder: Path) -> list[Row]:
    import pyarrow.dataset as pad

    return _rows_of_arrow(pad.dataset(folder, schema=_schema(folder), partitioning="hive").to_table())


def read_pandas(folder: Path) -> list[Row]:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    frame = pd.read_parquet(folder, dtype_backend="pyarrow", schema=_schema(folder))
    return _rows_of_arrow(pa.Table.from_pandas(frame, preserve_index=False))


def read_fastparquet(folder: Path) -> list[Row]:
    """Read file by file: of a folder it takes the columns of one file, and makes others of the folders' names."""
    import fastparquet  # type: ignore[import-untyped, unused-ignore]

    if is_hive(folder):
        return plain_rows(fastparquet.ParquetFile(str(folder)).to_pandas().to_dict("records"))
    frames = [fastparquet.ParquetFile(str(path)).to_pandas() for path in sorted(folder.rglob("*.parquet"))]
    # pandas would make floats of integers that some of the files have not.
    tables = [pa.Table.from_pandas(frame, preserve_index=False) for frame in frames]
    return _rows_of_arrow(pa.concat_tables(tables, promote_options="default"))


def read_datafusion(folder: Path) -> list[Row]:
    import datafusion

    config = datafusion.SessionConfig().with_target_partitions(1)
    config = config.set("datafusion.execution.listing_table_ignore_subdirectory", "false")
    context = datafusion.SessionContext(config)
    partitions = []
    if is_hive(folder):
        (folder,) = folder.iterdir()  # of the measurement: the folders of a partition come at once
        partitions = [(name, pa.string()) for name in ("year", "month", "day", "hour")]
    context.register_parquet("lake", str(folder), table_partition_cols=partitions)
    return _rows_of_arrow(context.sql("SELECT * FROM lake").to_arrow_table())


def read_chdb(folder: Path) -> list[Row]:
    import chdb

    query = f"SELECT * FROM file('{folder}/**/*.parquet', Parquet) SETTINGS schema_inference_mode = 'union', "
    query += "output_format_arrow_string_as_string = 0"
    return _rows_of_arrow(chdb.query(query, "ArrowTable"))  # type: ignore[no-untyped-call, unused-ignore]


class Reader(NamedTuple):
    """A reader: what it is imported as, how it reads, and what its own types cannot tell apart."""

    module: str
    read: Callable[[Path], list[Row]]
    nan_is_null: bool = False  # its floats have no null, so that NaN stands for it
    text_is_bytes: bool = False
    may_crash: bool = False  # it takes its process along when it does not understand a file
    installed_by: str = "make test-env"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def shows(self, row: Row) -> Row:
        """Tell how this reader shows a row of the model."""
        if not (self.nan_is_null or self.text_is_bytes):
            return row
        return {name: self._shows(value) for name, value in row.items()}

    def _shows(self, value: Any) -> Any:
        if self.nan_is_null and isinstance(value, float) and math.isnan(value):
            return None
        return value.encode() if self.text_is_bytes and isinstance(value, str) else value


READERS: Final = {
    "duckdb": Reader("duckdb", read_duckdb),
    "polars": Reader("polars", read_polars),
    "pyarrow": Reader("pyarrow", read_pyarrow),
    "pandas": Reader("pandas", read_pandas),
    "fastparquet": Reader("fastparquet", read_fastparquet, nan_is_null=True, may_crash=True),
    "datafusion": Reader("datafusion", read_datafusion),
    "chdb": Reader("chdb", read_chdb, text_is_bytes=True, installed_by="make test-readers"),
}
