"""Iceberg tables in Google's and Azure's stores, with PostgreSQL as the catalogue: `make test-clouds` runs it."""

from __future__ import annotations

import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from sqlalchemy import NullPool, create_engine

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables, TablesIceberg
from arcpipe.tables.iceberg.catalogue import store_uri
from arcpipe.tables.iceberg.cloud_io import CloudFileIO, place_of
from arcpipe.tables.iceberg.shared_io import SharedFiles
from arcpipe.tables.iceberg.sql_catalogue import postgresql_uri
from arcpipe.tables.iceberg.table import IcebergTables
from tests.support.clouds import Cloud
from tests.support.http import free_port
from tests.support.iceberg import assert_becomes_whole_or_nothing
from tests.support.server import Server
from tests.support.tables import CPU, NODE, local_lake, rows
from tests.support.waiting import wait_until


@pytest.fixture(params=["azure", "google"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud: Cloud = request.getfixturevalue(request.param)
    if not cloud.is_whole:
        pytest.skip("there is no emulator of Google's store here: `make test-clouds` gets it where there is Go")
    for name, value in cloud.variables.items():
        monkeypatch.setenv(name, value)
    return cloud


@pytest.fixture
def database(postgresql: str) -> str:
    name = "t" + uuid.uuid4().hex
    subprocess.run(["psql", postgresql, "-qc", f"CREATE DATABASE {name}"], check=True)
    return postgresql.rpartition("/")[0] + f"/{name}"


def test_a_server_commits_every_row_once_and_others_read_them(cloud: Cloud, database: str, tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        server_workers=1,
        storage_url=cloud.url,
        tables_format="iceberg",
        tables_iceberg_catalog="postgresql",
        tables_iceberg_uri=database,
        tables_commit_interval_seconds=0.2,
    )
    server.variables = {**cloud.variables}
    catalogue = SqlCatalog("arcpipe", uri=postgresql_uri(database, ""), **cloud.reader)
    catalogue.engine.dispose()
    catalogue.engine = create_engine(catalogue.properties["uri"], poolclass=NullPool)

    def rows() -> list[int]:
        with suppress(NoSuchTableError):
            found = catalogue.load_table(("default", "cpu"))
            if "py-io-impl" not in cloud.reader:
                return sorted(found.scan(selected_fields=("n",)).to_arrow()["n"].to_pylist())
            frame = pl.scan_iceberg(found, reader_override="native", storage_options={"use_emulator": "true"})
            return sorted(frame.select("n").collect()["n"].to_list())
        return []

    with server:
        for number in range(6):
            server.write({"m": "cpu", "columns": {"n": [number]}})
            if number == 3:
                server.kill_all()
                server.restart()
        wait_until(lambda: len(rows()) >= 6, "the commits")
        server.stop()
    assert rows() == list(range(6))
    location = catalogue.load_table(("default", "cpu")).metadata_location
    assert location.startswith(f"{store_uri(Storage(url=cloud.url))}/_iceberg/default/cpu/metadata/")


def test_upkeep_merges_manifests_and_finds_what_is_left_over(cloud: Cloud, database: str, tmp_path: Path) -> None:
    lake = local_lake(tmp_path)  # files are described there, and nobody reads them
    iceberg = TablesIceberg(catalog="postgresql", uri=database)
    tables = IcebergTables(
        Tables(format="iceberg", history_hours=1, iceberg=iceberg), Storage(url=cloud.url), str(lake.wal_dir)
    )
    tables.check()
    for number in range(9):
        tables.commit(CPU, [lake.put(CPU, rows(number * 10), f"b{number}")], NODE, number + 1)
    assert tables.maintain(CPU).merged > 0
    assert tables.committed(CPU, NODE) == 9
    files = SharedFiles().of("gs://" if cloud.url.startswith("gs") else "abfss://", {})
    assert isinstance(files, CloudFileIO)
    listed = files.listed(f"{store_uri(Storage(url=cloud.url))}/_iceberg/default/cpu/metadata")
    assert {name.rpartition(".")[2] for name, _ in listed} == {"json", "avro"}
    tables.close()


def test_a_file_is_whole_or_not_there(cloud: Cloud) -> None:
    files = SharedFiles().of(store_uri(Storage(url=cloud.url)), {})
    assert isinstance(files, CloudFileIO)
    folder = f"{store_uri(Storage(url=cloud.url))}/a b"
    output = files.new_output(f"{folder}/ü?#")
    assert_becomes_whole_or_nothing(output)
    with output.to_input_file().open() as stream:
        assert stream.read() == b"abc"
    files.write(f"{folder}/deeper/x", b"")
    assert [name for name, _ in files.listed(folder)] == ["ü?#"]
    files.delete(output)
    assert not output.exists()
    with pytest.raises(FileNotFoundError, match="a b"):
        output.to_input_file().open()


def test_a_dead_server_is_told_from_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(OSError, match=r"abfss://lake@devstoreaccount1\..*/k: .*sending request") as caught:
        CloudFileIO().new_input("abfss://lake@devstoreaccount1.dfs.core.windows.net/k").open()
    assert not isinstance(caught.value, FileNotFoundError | PermissionError)


def test_locations_are_those_that_other_engines_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "telemetry")
    location = store_uri(Storage(url="az://lake/some/prefix"))
    assert location == "abfss://lake@telemetry.dfs.core.windows.net/some/prefix"
    assert place_of(f"{location}/a") == ("abfss", "lake", "telemetry", "some/prefix/a")
    assert store_uri(Storage(url="gs://lake")) == "gs://lake"
    assert place_of("gs://lake/a?#") == ("gs", "lake", "", "a?#")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    monkeypatch.delenv("AZURE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ValueError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        store_uri(Storage(url="az://lake"))
    for elsewhere in ("s3://b/k", "gs:///k", "abfss://account/k", "/x"):
        with pytest.raises(ValueError, match="no location in Google's or Azure's store"):
            place_of(elsewhere)
