"""Places of all kinds where a committer works: a WAL directory, a store, a catalogue; and what holds at the end.

A place begins with what an uploader has handed over: two batches of two tables. `settings` are those of the committers,
whose addresses may lead through a proxy. `check` looks at the store and the catalogue themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import msgspec
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.config.load import load
from arcpipe.config.settings import Settings, Storage, StorageS3
from arcpipe.config.settings_tables import TablesIceberg
from arcpipe.storage import open_store
from arcpipe.tables import TableFormat, open_format
from arcpipe.tables.base import TableName
from arcpipe.tables.delta.checkpoints import options_of, uri_of
from arcpipe.tables.delta.paths import root_of
from arcpipe.tables.iceberg.sql_catalogue import postgresql_uri
from arcpipe.tables.stock import Report, Stock
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.committer_process import Committers, Outcome
from tests.crash.steps import Step
from tests.crash.uploader_process import Uploaders
from tests.support.iceberg import World
from tests.support.s3server import S3Bucket
from tests.support.tables import Lake
from tests.support.waiting import wait_until

DATABASE: Final = "db"
MEASUREMENTS: Final = ("m", "o")
_NEW_YEAR: Final = 1_767_225_600
_SEGMENTS: Final = 4
_ROWS: Final = 20  # of an entry


class Kind(NamedTuple):
    """A format, with the catalogue and the store that it has."""

    format: str
    catalogue: str  # empty for Delta
    store: str  # "local" or "s3"


KINDS: Final = {
    "iceberg sqlite": Kind("iceberg", "sqlite", "local"),
    "iceberg rest": Kind("iceberg", "rest", "local"),
    "iceberg postgresql": Kind("iceberg", "postgresql", "s3"),
    "iceberg glue": Kind("iceberg", "glue", "s3"),
    "delta local": Kind("delta", "", "local"),
    "delta s3": Kind("delta", "", "s3"),
}


class HandedOver(NamedTuple):
    """What an uploader has left: to be copied, and never changed."""

    wal: Path
    lake: Path
    numbers: dict[str, list[int]]  # the values of `n`, by measurement


def _make_log(directory: Path) -> dict[str, list[int]]:
    """Make sealed segments that become two batches of two tables. Returns the values of `n` by measurement."""
    log = WALDirectory(directory)
    log.make()
    ids = itertools.count()
    written: dict[str, list[int]] = {measurement: [] for measurement in MEASUREMENTS}
    with mock.patch("time.time_ns", return_value=_NEW_YEAR * 10**9):
        for slot in range(1, _SEGMENTS + 1):
            writer = WALWriter(log, slot, WALOptions(max_size_bytes=1 << 20))
            for measurement in MEASUREMENTS:
                group = Group()
                numbers = [next(ids) for _ in range(_ROWS)]
                written[measurement] += numbers
                columns = {"time": [_NEW_YEAR] * _ROWS, "n": numbers, "pad": ["x" * 20_000] * _ROWS}
                body = msgspec.msgpack.encode({"m": measurement, "columns": columns})
                group.add(envelope_prefix(KIND_COLUMNAR, DATABASE), body, _ROWS, writer.next_timestamp())
                writer.commit(group)
            writer.close()
    return written


def hand_over(base: Path) -> HandedOver:
    """Have the real uploader hand two batches over."""
    numbers = _make_log(base / "wal")
    settings = {
        "wal_dir": base / "wal",
        "wal_min_free_mb": 0,
        "uploader_batch_mb": 2,
        "storage_url": f"file://{base}/lake",
        "tables_format": "delta",
    }
    with Uploaders() as uploaders:
        assert uploaders.run(base / "wal", settings).exit_code == 0
    assert len(list((base / "wal" / "tables").glob("0*.json"))) == 2
    return HandedOver(base / "wal", base / "lake", numbers)


class Servers(NamedTuple):
    """Addresses; those that a kind does not need are empty."""

    rest: str = ""
    postgresql: str = ""
    bucket: S3Bucket | None = None


class Place:
    """A WAL directory, a store and a catalogue of its own."""

    def __init__(
        self, kind: Kind, handed: HandedOver, directory: Path, servers: Servers, committers: Committers
    ) -> None:
        self.kind = kind
        self.handed = handed
        self.wal = directory / "wal"
        self._committers = committers
        name = f"t{uuid.uuid4().hex[:12]}_"
        self.bucket = servers.bucket if kind.store == "s3" else None
        self.storage = self._storage(directory, name, self.bucket)
        shutil.copytree(handed.wal, self.wal)
        self._fill(handed.lake)
        self._options, properties = self._catalogue(servers, name)
        self.world = World(Lake(self.storage, self.wal, self.bucket), self._options, properties)
        self.settings = self._settings()
        self.real = dict(self.settings)

    @staticmethod
    def _storage(directory: Path, name: str, bucket: S3Bucket | None) -> Storage:
        if bucket is None:
            return Storage(url=f"file://{directory}/lake")
        options = StorageS3(
            endpoint_url=bucket.endpoint_url,
            region=bucket.region,
            access_key_id=bucket.access_key_id,
            secret_access_key=bucket.secret_access_key,
            addressing_style="path",
        )
        return Storage(url=f"s3://{bucket.bucket}/{name}", s3=options)

    def _fill(self, lake: Path) -> None:
        if self.bucket is None:
            shutil.copytree(lake, self.storage.url.removeprefix("file://"))
            return
        prefix = urlsplit(self.storage.url).path.strip("/")
        for path in lake.rglob("*.parquet"):
            key = f"{prefix}/{path.relative_to(lake)}"
            self.bucket.client().put_object(Bucket=self.bucket.bucket, Key=key, Body=path.read_bytes())

    def _catalogue(self, servers: Servers, name: str) -> tuple[TablesIceberg, dict[str, str]]:
        """Return its options, and its properties as any user of pyiceberg writes them."""
        match self.kind.catalogue:
            case "rest":
                options = TablesIceberg(catalog="rest", uri=servers.rest, namespace_prefix=name)
                return options, {"uri": servers.rest}
            case "postgresql":
                options = TablesIceberg(catalog="postgresql", uri=servers.postgresql, namespace_prefix=name)
                return options, {"uri": postgresql_uri(servers.postgresql, "")}
            case "glue":
                assert self.bucket is not None
                options = TablesIceberg(catalog="glue", uri=self.bucket.endpoint_url, namespace_prefix=name)
                of_s3 = self.storage.s3
                return options, {
                    "glue.endpoint": of_s3.endpoint_url,
                    "glue.region": of_s3.region,
                    "glue.access-key-id": of_s3.access_key_id,
                    "glue.secret-access-key": of_s3.secret_access_key,
                }
            case _:
                return TablesIceberg(), {"uri": f"sqlite:///{self.wal}/tables/iceberg.db"}

    def _settings(self) -> dict[str, object]:
        made: dict[str, object] = {
            "wal_dir": str(self.wal),
            "storage_url": self.storage.url,
            "tables_format": self.kind.format,
        }
        if self.bucket is not None:
            for name in ("endpoint_url", "region", "access_key_id", "secret_access_key", "addressing_style"):
                made[f"storage_s3_{name}"] = getattr(self.storage.s3, name)
        if self.kind.format == "iceberg":
            for name in ("catalog", "uri", "namespace_prefix"):
                made[f"tables_iceberg_{name}"] = getattr(self._options, name)
        return made

    # What happens

    def commit(self, **options: Any) -> int:
        """Run a committer; return its exit code."""
        return self.run(**options).exit_code

    def run(self, committers: Committers | None = None, **options: Any) -> Outcome:
        return (committers or self._committers).run(self.wal, self.settings, **options)

    @contextmanager
    def stopped(self, others: Committers, step: Step, **options: Any) -> Iterator[Callable[[], int]]:
        """Have a committer stop at a step. Inside, call what is lent to continue it: it returns the exit code.

        The lock of the WAL directory goes with it, as if this directory were on another machine by now.

        Args:
            others: run it, so that a successor can be run by the place's own.
        """
        flag = Path(f"{self.wal}.stopped")
        with ThreadPoolExecutor(1) as thread:
            ended: Future[Outcome] = thread.submit(others.run, self.wal, self.settings, stop=step, **options)
            wait_until(lambda: flag.exists() or ended.done(), "the stop")
            assert not ended.done(), f"it ended without {step}: {ended.result()}"
            pid = int(flag.read_text())
            try:
                wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the T")
                (self.wal / "tables" / "LOCK").unlink()

                def go_on() -> int:
                    os.kill(pid, signal.SIGCONT)
                    return ended.result().exit_code

                yield go_on
            finally:
                if not ended.done():
                    os.kill(pid, signal.SIGCONT)
                flag.unlink()

    # What is there

    def tables(self) -> TableFormat:
        loaded = self._loaded()
        return open_format(loaded.tables, loaded.storage, loaded.wal.dir)

    def _loaded(self) -> Settings:
        return load(None, {f"ARCPIPE_{name.upper()}": str(value) for name, value in self.real.items()})

    def check(self) -> None:
        """Every row is in its table once, every object is in a table, and nothing is left."""
        with closing(self.tables()) as tables:
            keys = [key for table in tables.all_tables() for key in tables.files(table)]
            assert [key for key, count in Counter(keys).items() if count > 1] == [], "files are there twice"
            self.check_rows()
            for report in asyncio.run(self._verify(tables)):
                assert report.is_whole, report
                assert report.is_table, report
                assert (report.waiting, report.others) == (0, 0), report
        assert list((self.wal / "tables").glob("0*.json*")) == []
        assert "Traceback" not in Path(f"{self.wal}.log").read_text()

    def check_rows(self) -> None:
        """Two readers find each row once."""
        for measurement, numbers in self.handed.numbers.items():
            first, second = self.readers((DATABASE, measurement))
            assert first == second, "readers differ"
            assert [number for number, count in Counter(first).items() if count > 1] == [], "rows are there twice"
            assert first == sorted(numbers), "rows are missing"

    def readers(self, table: TableName) -> tuple[list[int], list[int]]:
        """Return the values of `n`, sorted, as two programs read them that know nothing of arcpipe."""
        if self.kind.format == "iceberg":
            return self.world.readings(table)
        uri, options = uri_of(self.storage, root_of(table)), options_of(self.storage)
        found = QueryBuilder().register("t", DeltaTable(uri, storage_options=options)).execute("SELECT n FROM t")
        frame = pl.scan_delta(uri, storage_options=options).select("n").collect()
        assert isinstance(frame, pl.DataFrame)
        return sorted(pa.table(found)["n"].to_pylist()), sorted(frame["n"].to_list())

    async def _verify(self, tables: TableFormat) -> list[Report]:
        """Do what `arcpipe tables verify` does."""
        node = WALDirectory(self.wal).node()
        store = open_store(self.storage.url, self.storage.s3)
        try:
            stock = Stock(tables, store, str(self.wal), None if node is None else node.node)
            return [report async for report in stock.compare()]
        finally:
            await store.close()


# Fixtures


@pytest.fixture(scope="module")
def committers() -> Iterator[Committers]:
    with Committers() as running:
        yield running


@pytest.fixture(scope="module")
def zombies() -> Iterator[Committers]:
    with Committers() as running:
        yield running


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> HandedOver:
    return hand_over(tmp_path_factory.mktemp("handed"))


Make = Callable[..., Place]


@pytest.fixture
def make(request: pytest.FixtureRequest, handed: HandedOver, committers: Committers, tmp_path: Path) -> Make:
    """Make a place of a kind, with the servers that it needs."""

    def made(kind: str, name: str = "place") -> Place:
        needed = KINDS[kind]
        servers = Servers(
            rest=request.getfixturevalue("iceberg_rest") if needed.catalogue == "rest" else "",
            postgresql=request.getfixturevalue("postgresql") if needed.catalogue == "postgresql" else "",
            bucket=request.getfixturevalue("s3") if needed.store == "s3" else None,
        )
        (tmp_path / name).mkdir()
        return Place(needed, handed, tmp_path / name, servers, committers)

    return made
