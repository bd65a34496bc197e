"""Real files in real stores, as the uploader makes them, for the tests of tables."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.config.settings import Storage, StorageS3
from arcpipe.config.settings_tables import Tables
from arcpipe.lake.keys import Partition
from arcpipe.tables.base import NewFile, TableName
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, file_bytes, table_of
from tests.support.s3server import S3Bucket

__all__ = ["CPU", "HOUR_US", "NODE", "OTHER_NODE", "Lake", "local_lake", "rows", "s3_lake"]

CPU: TableName = ("default", "cpu")


def rows(first: int, count: int = 3, **more: Any) -> list[dict[str, Any]]:
    """Make rows that are numbered by `n`, a second apart, in the first hour of 2026."""
    return [
        {"time": (first + number) % 3_600 * 1_000_000, "host": f"h{number % 2}", "n": first + number} | more
        for number in range(count)
    ]


class Lake(NamedTuple):
    """A store with files, and a WAL directory."""

    storage: Storage
    wal_dir: Path
    bucket: S3Bucket | None

    @property
    def _prefix(self) -> str:
        """Of its keys in the bucket."""
        return urlsplit(self.storage.url).path.removeprefix("/") + "/"

    def put(self, table: TableName, content: Sequence[dict[str, Any]] | pa.Table, name: str, hour: int = 0) -> NewFile:
        """Make a file of this hour, counted from the first of 2026, and describe it.

        Args:
            content: its rows, or a table whose times are those of the hour.
            name: of its batch.
        """
        data = content if isinstance(content, pa.Table) else table_of(content)
        if hour:
            shifted = pa.compute.add(data["time"].cast(pa.int64()), hour * 3_600_000_000).cast(data["time"].type)
            data = data.set_column(data.schema.get_field_index("time"), data.schema.field("time"), shifted)
        hour_us = HOUR_US + hour * 3_600_000_000
        key = Partition(*table, hour_us).key("arc", hour_us, name, 0)
        content_bytes = file_bytes(data, self.wal_dir, table[0], table[1], name)
        self.write(key, content_bytes)
        return NewFile(key, len(content_bytes), len(data), pq.read_metadata(io.BytesIO(content_bytes)))

    def write(self, key: str, data: bytes) -> None:
        if self.bucket is not None:
            self.bucket.client().put_object(Bucket=self.bucket.bucket, Key=f"{self._prefix}{key}", Body=data)
            return
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    @property
    def root(self) -> Path:
        return Path(self.storage.url.removeprefix("file://"))

    def objects(self) -> list[str]:
        """List all objects."""
        if self.bucket is not None:
            return [key.removeprefix(self._prefix) for key in self.bucket.list_keys()]
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def age(self, seconds: float) -> None:
        """Make all files of a local store older."""
        then = time.time() - seconds
        for path in self.root.rglob("*"):
            os.utime(path, (then, then))

    def tables(self, **options: Any) -> Tables:
        return Tables(format="iceberg", **options)


def local_lake(directory: Path) -> Lake:
    (directory / "wal").mkdir(exist_ok=True)
    return Lake(Storage(url=f"file://{directory}/lake"), directory / "wal", None)


def s3_lake(bucket: S3Bucket, directory: Path) -> Lake:
    (directory / "wal").mkdir(exist_ok=True)
    options = StorageS3(
        endpoint_url=bucket.endpoint_url,
        region=bucket.region,
        access_key_id=bucket.access_key_id,
        secret_access_key=bucket.secret_access_key,
        addressing_style="path",
    )
    return Lake(Storage(url=f"s3://{bucket.bucket}/some/prefix", s3=options), directory / "wal", bucket)
