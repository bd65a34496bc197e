"""Delta tables for tests: files in a store, the format over it, and readers that know nothing of arcpipe."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder

from arcpipe.config.settings import Storage, StorageS3
from arcpipe.config.settings_tables import Tables
from arcpipe.lake.keys import Hidden, Layout, Partition
from arcpipe.tables.base import NewFile, TableName
from arcpipe.tables.delta.checkpoints import options_of, uri_of
from arcpipe.tables.delta.paths import root_of
from arcpipe.tables.delta.tables import DeltaTables
from tests.support.compaction import HOUR_US, NODE, file_bytes, table_of
from tests.support.s3server import S3Bucket

CPU: TableName = ("db", "cpu")
_PREFIX = "some/prefix/"


class DeltaLake:
    """A store with Delta tables, as several nodes and readers see it."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        bucket: S3Bucket | None = None,
        *,
        layout: Layout = "arc",
        hidden: Hidden = "._~",
    ) -> None:
        self.storage = storage
        self.directory = directory
        self.root = directory / "lake"  # of a local store
        self.bucket = bucket
        self._layout = layout
        self._hidden = hidden
        self._opened: list[DeltaTables] = []
        self._numbers = 0

    def open(self, storage: Storage | None = None, **settings: Any) -> DeltaTables:
        """Open the tables, as a process of one node does."""
        upkeep = settings.pop("upkeep_seconds", 3_600.0)
        tables = DeltaTables(Tables(format="delta", **settings), storage or self.storage, upkeep_seconds=upkeep)
        self._opened.append(tables)
        return tables

    def close(self) -> None:
        for tables in self._opened:
            tables.close()

    def file(self, rows: Sequence[dict[str, Any]], table: TableName = CPU, **types: pa.DataType) -> NewFile:
        """Put a file of these rows, as the uploader does, and read its footer."""
        arrow = table_of([{"time": number, **row} for number, row in enumerate(rows)], **types)
        return self.put(file_bytes(arrow, self.directory, *table), table)

    @staticmethod
    def file_rows(rows: Sequence[dict[str, Any]]) -> pa.Table:
        """Make a table of rows, for other writers."""
        return table_of([{"time": number, **row} for number, row in enumerate(rows)])

    def put(self, data: bytes, table: TableName = CPU) -> NewFile:
        """Put a file of these bytes."""
        self._numbers += 1
        batch = f"{NODE}-20260101T000000-1.{self._numbers}-{self._numbers:08x}"
        key = Partition(*table, HOUR_US).key(self._layout, HOUR_US, batch, 0, self._hidden)
        self.put_object(key, data)
        metadata = pq.read_metadata(io.BytesIO(data))
        return NewFile(key, len(data), metadata.num_rows, metadata)

    def put_object(self, key: str, data: bytes) -> None:
        if self.bucket is not None:
            self.bucket.client().put_object(Bucket=self.bucket.bucket, Key=_PREFIX + key, Body=data)
            return
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete_objects(self, prefix: str) -> None:
        """Delete what begins with a text; a whole folder if it ends in a slash."""
        if self.bucket is None and prefix.endswith("/"):
            shutil.rmtree(self.root / prefix)
        for key in self.listed(prefix):
            if self.bucket is not None:
                self.bucket.client().delete_object(Bucket=self.bucket.bucket, Key=_PREFIX + key)
            else:
                (self.root / key).unlink()

    def listed(self, prefix: str = "") -> list[str]:
        """Return the keys of the store."""
        if self.bucket is not None:
            keys = [key.removeprefix(_PREFIX) for key in self.bucket.list_keys()]
        else:
            keys = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        return sorted(key for key in keys if key.startswith(prefix))

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes() if self.bucket is None else self.bucket.read(_PREFIX + key)

    def commit_of(self, version: int, table: TableName = CPU) -> list[dict[str, Any]]:
        """Return the actions of a commit."""
        data = self.read(f"{root_of(table)}/_delta_log/{version:020}.json")
        return [json.loads(line) for line in data.splitlines()]

    # Readers

    def delta(self, table: TableName = CPU) -> DeltaTable:
        return DeltaTable(uri_of(self.storage, root_of(table)), storage_options=options_of(self.storage))

    def rows_by_deltalake(self, table: TableName = CPU, columns: str = "*") -> list[dict[str, Any]]:
        """Read with deltalake's own engine, DataFusion."""
        found = QueryBuilder().register("t", self.delta(table)).execute(f"SELECT {columns} FROM t")
        rows: list[dict[str, Any]] = pa.table(found).to_pylist()
        return rows

    def rows_by_polars(self, table: TableName = CPU) -> list[dict[str, Any]]:
        frame = pl.scan_delta(uri_of(self.storage, root_of(table)), storage_options=options_of(self.storage)).collect()
        assert isinstance(frame, pl.DataFrame)
        return frame.to_dicts()

    def rows_by_duckdb(self, table: TableName = CPU, columns: str = "*") -> list[tuple[Any, ...]]:
        """Read the table's files, as deltalake names them, with DuckDB; local stores only."""
        paths = self.delta(table).file_uris()
        with duckdb.connect() as connection:
            return connection.execute(
                f"SELECT {columns} FROM read_parquet(?, union_by_name => true)", [paths]
            ).fetchall()


def local_lake(directory: Path, **options: Any) -> DeltaLake:
    return DeltaLake(Storage(url=f"file://{directory}/lake"), directory, **options)


def s3_lake(bucket: S3Bucket, directory: Path, **options: Any) -> DeltaLake:
    return DeltaLake(s3_storage(bucket), directory, bucket, **options)


def s3_storage(bucket: S3Bucket, url: str = "") -> Storage:
    """Return the settings that lead to the bucket, or to a proxy in front of it."""
    s3 = StorageS3(
        endpoint_url=url or bucket.endpoint_url,
        access_key_id=bucket.access_key_id,
        secret_access_key=bucket.secret_access_key,
        region=bucket.region,
        addressing_style="path",
    )
    return Storage(url=f"s3://{bucket.bucket}/{_PREFIX[:-1]}", s3=s3)


def rows_of(first: int, count: int = 10) -> list[dict[str, Any]]:
    """Rows that are told apart by `n`."""
    return [{"host": f"h{n % 3}", "n": n, "v": n / 2} for n in range(first, first + count)]
