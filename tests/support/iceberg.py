"""Catalogues for the tests of Iceberg: SQLite, PostgreSQL, Glue and REST, each the real thing, and readers of tables.

PostgreSQL needs Debian's package, REST Java and what `make test-tables` fetches; without these the tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io import OutputFile
from pyiceberg.table import Table
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from arcpipe.config.settings_tables import Tables, TablesIceberg
from arcpipe.tables.base import TableName
from arcpipe.tables.iceberg import names
from arcpipe.tables.iceberg.sql_catalogue import postgresql_uri
from arcpipe.tables.iceberg.table import IcebergTables
from tests.support.http import free_port
from tests.support.s3server import S3Bucket
from tests.support.tables import CPU, Lake, local_lake, s3_lake
from tests.support.waiting import STOP_SECONDS, wait_until

JARS = Path(__file__).parents[2] / ".tables" / "iceberg-rest"


@dataclass
class World:
    """A lake and a catalogue for its tables."""

    lake: Lake
    options: TablesIceberg
    properties: dict[str, str]  # of the catalogue, as any user of pyiceberg writes them

    def open(self, **options: Any) -> IcebergTables:
        """Open arcpipe's tables."""
        tables = Tables(format="iceberg", iceberg=self.options, **options)
        return IcebergTables(tables, self.lake.storage, str(self.lake.wal_dir))

    def catalogue(self) -> Catalog:
        """Open the catalogue as somebody else does: with pyiceberg's own classes."""
        (self.lake.wal_dir / "tables").mkdir(exist_ok=True)
        kind = {"sqlite": SqlCatalog, "postgresql": SqlCatalog, "glue": GlueCatalog, "rest": RestCatalog}
        s3 = self.lake.storage.s3
        of_s3 = {
            "s3.endpoint": s3.endpoint_url,
            "s3.region": s3.region,
            "s3.access-key-id": s3.access_key_id,
            "s3.secret-access-key": s3.secret_access_key,
        }
        properties = {key: value for key, value in of_s3.items() if value} | self.properties
        try:
            made: Catalog = kind[self.options.catalog]("arcpipe", **properties)
        except (OperationalError, ProgrammingError):  # a server made the catalogue's tables since pyiceberg's look
            made = kind[self.options.catalog]("arcpipe", **properties)
        if self.options.catalog == "postgresql":
            assert isinstance(made, SqlCatalog)
            # Nobody closes what a test opens so, and a server has a hundred connections for all tests of a process.
            made.engine.dispose()
            made.engine = create_engine(made.properties["uri"], poolclass=NullPool)
        return made

    def identifier(self, table: TableName = CPU) -> tuple[str, str]:
        """Return the table's name in the catalogue."""
        namespace, name = (names.encode(one, narrow=self.options.catalog == "glue") for one in table)
        return f"{self.options.namespace_prefix}{namespace}", name

    def load(self, table: TableName = CPU) -> Table:
        """Load a table as somebody else does."""
        return self.catalogue().load_table(self.identifier(table))

    def numbers(self, table: TableName = CPU) -> list[int]:
        """Read the column `n` of a table with two readers, which have to agree. Sorted."""
        first, second = self.readings(table)
        assert first == second
        return first

    def readings(self, table: TableName = CPU) -> tuple[list[int], list[int]]:
        """Read the column `n` of a table with two readers. Sorted."""
        found = self.load(table)
        first: list[int] = sorted(found.scan(selected_fields=("n",)).to_arrow()["n"].to_pylist())
        options = {
            key: value
            for key, value in {
                "aws_endpoint_url": self.lake.storage.s3.endpoint_url,
                "aws_access_key_id": self.lake.storage.s3.access_key_id,
                "aws_secret_access_key": self.lake.storage.s3.secret_access_key,
                "aws_region": self.lake.storage.s3.region,
                "aws_allow_http": "true",
            }.items()
            if value and self.lake.bucket
        }
        frame = pl.scan_iceberg(found, reader_override="native", storage_options=options or None)
        return first, sorted(frame.select("n").collect()["n"].to_list())


def sqlite_world(directory: Path, **options: Any) -> World:
    lake = local_lake(directory)
    uri = f"sqlite:///{lake.wal_dir}/tables/iceberg.db"
    return World(lake, TablesIceberg(**options), {"uri": uri})


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Run a server of one's own; yields the address of its database."""
    found = shutil.which("initdb") or next(
        iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None
    )
    if found is None:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    programs = Path(found).parent
    with tempfile.TemporaryDirectory(prefix="arcpipe-pg-") as folder:
        data = Path(folder) / "data"
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "nobody")
            os.chmod(folder, 0o700)
            as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "arcpipe", "-A", "trust", "-N"], check=True, **quiet, **as_user
        )
        log = Path(folder) / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(free_port()), "-k", folder, "-F", "-h", "127.0.0.1"],
                stdout=output,
                stderr=output,
                cwd=folder,
                **as_user,
            )
        try:
            wait_until(
                lambda: b"ready to accept connections" in log.read_bytes() or server.poll() is not None, "PostgreSQL"
            )
            port = re.search(rb'address "127.0.0.1", port (\d+)', log.read_bytes())
            assert port is not None, log.read_text()
            yield f"postgresql://arcpipe@127.0.0.1:{int(port[1])}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(STOP_SECONDS)


@contextmanager
def rest_server(warehouse: str, **properties: str) -> Iterator[str]:
    """Run Apache Iceberg's own REST server of its tests; yields its address.

    Args:
        properties: more of the catalogue behind it, with underscores for dots and two of them for dashes.
    """
    if not any(JARS.glob("*.jar")) or shutil.which("java") is None:
        pytest.skip("there is no REST catalogue: make test-tables fetches one, and runs it with Java")
    port = free_port()
    with tempfile.NamedTemporaryFile() as output:
        server = subprocess.Popen(
            ["java", "-Xmx512m", "-cp", f"{JARS}/*", "org.apache.iceberg.rest.RESTCatalogServer"],
            env=os.environ
            # One connection: its database is in memory, and a second connection would have a database of its own.
            | {"CATALOG_WAREHOUSE": warehouse, "CATALOG_REST_PORT": str(port), "CATALOG_CLIENTS": "1"}
            | {f"CATALOG_{name.upper()}": value for name, value in properties.items()},
            stdout=output,
            stderr=output,
        )
        try:
            said = Path(output.name)
            wait_until(
                lambda: b"Started Server" in said.read_bytes() or server.poll() is not None, "the REST catalogue"
            )
            assert server.poll() is None, said.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(STOP_SECONDS)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with postgresql_server() as uri:
        yield uri


@pytest.fixture(scope="session")
def iceberg_rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rest_server(f"file://{tmp_path_factory.mktemp('warehouse')}") as uri:
        yield uri


def postgresql_world(uri: str, bucket: S3Bucket, directory: Path) -> World:
    lake = s3_lake(bucket, directory)
    name = "t" + uuid.uuid4().hex  # a database of one's own
    subprocess.run(["psql", uri, "-qc", f"CREATE DATABASE {name}"], check=True)
    uri = uri.rpartition("/")[0] + f"/{name}"
    options = TablesIceberg(catalog="postgresql", uri=uri)
    return World(lake, options, {"uri": postgresql_uri(uri, "")})


def glue_world(bucket: S3Bucket, directory: Path) -> World:
    lake = s3_lake(bucket, directory)
    prefix = f"t{uuid.uuid4().hex[:12]}_"
    options = TablesIceberg(catalog="glue", uri=bucket.endpoint_url, namespace_prefix=prefix)
    properties = {
        "glue.endpoint": bucket.endpoint_url,
        "glue.region": bucket.region,
        "glue.access-key-id": bucket.access_key_id,
        "glue.secret-access-key": bucket.secret_access_key,
    }
    return World(lake, options, properties)


def rest_world(uri: str, directory: Path) -> World:
    prefix = f"t{uuid.uuid4().hex[:12]}_"
    options = TablesIceberg(catalog="rest", uri=uri, namespace_prefix=prefix)
    return World(local_lake(directory), options, {"uri": uri})


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Each catalogue in turn: SQLite and REST with a local lake, the others with S3."""
    match request.param:
        case "sqlite":
            return sqlite_world(tmp_path)
        case "postgresql":
            uri = request.getfixturevalue("postgresql")
            return postgresql_world(uri, request.getfixturevalue("s3"), tmp_path)
        case "glue":
            return glue_world(request.getfixturevalue("s3"), tmp_path)
        case _:
            return rest_world(request.getfixturevalue("iceberg_rest"), tmp_path)


def assert_becomes_whole_or_nothing(output: OutputFile) -> None:
    """Write an object that is not there: first half of it, until an error, and then three bytes."""
    assert not output.exists()

    def fail() -> None:
        with output.create() as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not output.exists()
    with output.create() as stream:
        stream.write(b"abc")
    assert len(output) == len(output.to_input_file()) == 3
    with pytest.raises(FileExistsError):
        output.create()
