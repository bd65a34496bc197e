"""Places for the files of a server: a directory or a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.s3server import S3Bucket


class Store(NamedTuple):
    """A place for the files of a server: the settings that lead there, and how to get a directory with its objects."""

    settings: dict[str, object]
    read: Callable[[], Path]


def local_store(directory: Path) -> Store:
    return Store({"storage_url": f"file://{directory}/lake"}, lambda: directory / "lake")


def s3_store(bucket: S3Bucket, directory: Path) -> Store:
    """Download objects before they are read: DuckDB needs an extension to read S3 itself."""
    settings: dict[str, object] = {
        "storage_url": f"s3://{bucket.bucket}/some/prefix",
        "storage_s3_endpoint_url": bucket.endpoint_url,
        "storage_s3_region": bucket.region,
        "storage_s3_access_key_id": bucket.access_key_id,
        "storage_s3_secret_access_key": bucket.secret_access_key,
        "storage_s3_addressing_style": "path",
    }

    def read() -> Path:
        for key in bucket.list_keys():
            path = directory / "downloaded" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.read(key))
        return directory / "downloaded" / "some" / "prefix"

    return Store(settings, read)
