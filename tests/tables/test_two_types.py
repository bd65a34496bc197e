"""Two servers write one Iceberg table, and meet different types of one column first: all values are in the table."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import polars as pl

from tests.integration.test_tables import serving, write
from tests.support.iceberg import World, postgresql_world
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.stores import s3_store
from tests.support.waiting import wait_until


def read(world: World) -> list[dict[str, Any]]:
    """Read the table with two readers, which have to agree."""
    if not world.catalogue().table_exists(world.identifier()):
        return []
    table = world.load()
    first = table.scan().to_arrow().to_pylist()
    s3 = world.lake.storage.s3
    options = {
        "aws_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key_id,
        "aws_secret_access_key": s3.secret_access_key,
        "aws_region": s3.region,
        "aws_allow_http": "true",
    }
    second = pl.scan_iceberg(table, reader_override="native", storage_options=options).collect().to_dicts()
    found = [sorted(map(repr, (sorted(row.items()) for row in rows))) for rows in (first, second)]
    assert len(found[0]) == len(found[1])
    assert [row["id"] for row in sorted(first, key=by_id)] == [row["id"] for row in sorted(second, key=by_id)]
    return sorted(first, key=by_id)


def by_id(row: dict[str, Any]) -> int:
    return int(row["id"])


def test_a_column_with_two_types_has_all_values_in_the_table(postgresql: str, s3: S3Bucket, tmp_path: Path) -> None:
    world = postgresql_world(postgresql, s3, tmp_path)
    options = {
        **s3_store(s3, tmp_path).settings,
        "tables_iceberg_catalog": "postgresql",
        "tables_iceberg_uri": world.options.uri,
    }
    servers: list[Server] = []
    try:
        for number in range(2):
            directory = tmp_path / f"node-{number}"
            directory.mkdir()
            servers.append(serving(directory, "iceberg", **options))
            servers[-1].start()
        first, second = servers
        write(first, 1, id=[1])
        wait_for(world, 1)
        second.write({"m": "cpu", "columns": {"time": [1_767_225_600], "n": ["two"], "id": [2]}})
        wait_for(world, 2)
        assert "its values go to 'n_str'" in second.log
        wait_until(lambda: '"n_str"' in (second.wal / "schema.json").read_text(), "the uploader knows the types")
        second.write({"m": "cpu", "columns": {"time": [1_767_225_601], "n": ["three"], "id": [3]}})
        second.write({"m": "cpu", "columns": {"time": [1_767_225_602], "n": [4], "id": [4]}})
        wait_for(world, 4)
        assert second.log.count("its values go to") == 1
        found = [(row["id"], row["n"], row["n_str"]) for row in read(world)]
        assert found == [(1, 1, None), (2, None, "two"), (3, None, "three"), (4, 4, None)]
        for server in servers:
            server.stop()
        keys = [key for key in s3.list_keys() if key.endswith(".parquet")]
        assert len(keys) == len(list(world.open().files(("default", "cpu"))))
        assert sum(".fit" in key for key in keys) == 1
    finally:
        for server in servers:
            server.end()


def wait_for(world: World, count: int) -> None:
    wait_until(functools.partial(_has, world, count), f"{count} rows in the table")


def _has(world: World, count: int) -> bool:
    return len(read(world)) >= count
