"""The uploader dies, or meets an error, at each step of a batch; the next one ships everything once, and only once."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import pytest

from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.format import KIND_COLUMNAR, envelope_prefix
from arcpipe.wal.recovery import recover_slot
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.uploader_process import Outcome, Step, Uploaders
from tests.harness import download, lake_files
from tests.s3server import S3Bucket

# 2026-01-01T00:00:00Z
NEW_YEAR = 1_767_225_600
ROWS = 50  # of an entry
DATABASES = ("alpha", "beta")
NOT_A_LOG = "worker-9-20260101_000000-000001.wal.sealed"

BATCHES = "arcpipe.upload.batch:Batches."
DISK = "arcpipe.wal.disk:Disk."
MANIFEST = r"/batches/[^/]*\.json\b"

# A batch takes so many bytes of segments here, so that the log makes several of them.
SMALL_BATCHES = {"arcpipe.upload.batch:BATCH_TARGET_BYTES": 1_500_000}


class Log(NamedTuple):
    """A log directory full of completed segments, and what is to become of it."""

    wal: Path
    ids: set[int]
    odd: dict[int, str]  # by id: what is to be rescued of the column `mixed`


def add_entry(writer: WALWriter, database: str, columns: Mapping[str, list[Any]], measurement: str) -> None:
    group = Group()
    body = msgspec.msgpack.encode({"m": measurement, "columns": columns})
    group.add(envelope_prefix(KIND_COLUMNAR, database), body, len(columns["id"]), writer.next_timestamp())
    writer.commit(group)


def fill(writer: WALWriter, first: int, entries: int, log: Log) -> int:
    """Writes entries over two databases, two measurements and three hours; the first id that is left."""
    for number in range(entries):
        ids = list(range(first, first + ROWS))
        hour = NEW_YEAR + number % 3 * 3600
        # The first ones whole numbers, later ones not, here and there something that is no number.
        mixed: list[Any] = [identity if number < 40 else identity + 0.5 for identity in ids]
        for index in range(number % 7, ROWS, 23):
            mixed[index] = log.odd[ids[index]] = f"odd {ids[index]}"
        columns = {
            "time": [hour + index * 7 for index in range(ROWS)],
            "id": ids,
            "value": [identity / 4 for identity in ids],
            "mixed": mixed,
            "pad": ["x" * 400] * ROWS,
        }
        if number % 5 == 4:
            columns["host"] = [f"host-{index % 3}" for index in range(ROWS)]
        add_entry(writer, DATABASES[number % 2], columns, f"m {number // 2 % 2}")
        log.ids.update(ids)
        first += ROWS
    return first


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Full and small segments of two workers, one that a crash left, a damaged one, one that is none at all, and an
    entry that cannot be converted."""
    base = tmp_path_factory.mktemp("log")
    log = Log(base / "wal", set(), {})
    source = WALDirectory(base / "source")
    source.make()
    options = WALOptions(max_size_bytes=1 << 20)
    writers = {slot: WALWriter(source, slot, options) for slot in (1, 2, 3, 4)}
    first = fill(writers[1], 0, 110, log)
    first = fill(writers[2], first, 60, log)
    add_entry(writers[2], "beta", {"id": []}, "m 0")  # a column of no values makes no rows, and no trouble
    group = Group()
    group.add(envelope_prefix(KIND_COLUMNAR, "beta"), b"\xa4junk", 1, writers[2].next_timestamp())
    writers[2].commit(group)
    first = fill(writers[3], first, 7, log)
    for slot in (1, 2):
        writers[slot].close()
    intact = fill(writers[4], first, 3, log)
    writers[4].close()
    shutil.copytree(source.path, log.wal)
    writers[3].close()

    directory = WALDirectory(log.wal)
    recover_slot(directory, 3)
    (damaged,) = directory.segments(SEALED, 4)
    content = bytearray(Path(damaged.path).read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the second of its three entries
    Path(damaged.path).write_bytes(content)
    lost = set(range(first + ROWS, intact - ROWS))
    log.ids.difference_update(lost)
    for identity in lost:
        log.odd.pop(identity, None)
    (log.wal / NOT_A_LOG).write_bytes(b"this is no log" * 1000)
    assert len(directory.segments(SEALED)) == 8
    return log


class Store:
    """Where the objects go: its settings, and how to look at it."""

    def __init__(self, settings: dict[str, object], prefix: str, read: Callable[[], Path]) -> None:
        self.settings = settings
        self.prefix = prefix  # of the functions that are its steps
        self.read = read


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield local_store(tmp_path)
        assert not list((tmp_path / "lake").glob(".arcpipe-staging/*"))
        return
    s3: S3Bucket = request.getfixturevalue("s3")
    settings: dict[str, object] = {
        "storage_url": f"s3://{s3.bucket}/prefix",
        "storage_s3_endpoint_url": s3.endpoint_url,
        "storage_s3_region": s3.region,
        "storage_s3_access_key_id": s3.access_key_id,
        "storage_s3_secret_access_key": s3.secret_access_key,
        "storage_s3_addressing_style": "path",
    }
    yield Store(
        settings, "arcpipe.storage.s3:S3Store.", lambda: download(s3, tmp_path / "downloaded") / "prefix"
    )
    assert s3.uploads() == []


def local_store(directory: Path) -> Store:
    return Store(
        {"storage_url": f"file://{directory / 'lake'}"}, "arcpipe.storage.local:LocalStore.", lambda: directory / "lake"
    )


@pytest.fixture(scope="module")
def uploaders() -> Iterator[Uploaders]:
    with Uploaders() as uploaders:
        yield uploaders


class Site:
    """A copy of a log, the store that it goes to, and the uploaders that are let loose on it."""

    def __init__(self, log: Log, directory: Path, store: Store, uploaders: Uploaders) -> None:
        self.log = log
        self.store = store
        self.wal = directory / "wal"
        self._uploaders = uploaders
        shutil.copytree(log.wal, self.wal)

    def run(self, *, restart_server: bool = False, settings: Mapping[str, object] = {}, **arms: Any) -> Outcome:
        constants = arms.pop("constants", SMALL_BATCHES)
        wanted = {"wal_dir": self.wal, "wal_max_size_mb": 1, "wal_free_segments": 2, **self.store.settings, **settings}
        return self._uploaders.run(self.wal, wanted, constants=constants, restart_server=restart_server, **arms)

    def finish(self, **arms: Any) -> Outcome:
        """An uploader that nothing happens to."""
        outcome = self.run(**arms)
        assert outcome.exit_code == 0, self.said
        return outcome

    @property
    def said(self) -> str:
        return Path(f"{self.wal}.log").read_text()

    def assert_shipped_exactly_once(self) -> list[str]:
        """The rows are those of the log, and nothing is left over anywhere. All keys of the store."""
        lake = self.store.read()
        files = [str(path) for path in lake_files(lake)]
        with duckdb.connect() as connection:
            rows = connection.execute(
                "SELECT id, value, _rescued_data FROM read_parquet(?, union_by_name = true, hive_partitioning = false)",
                [files],
            ).fetchall()
        ids = [row[0] for row in rows]
        missing, unexpected = self.log.ids.difference(ids), set(ids).difference(self.log.ids)
        assert (len(missing), len(unexpected), len(ids) - len(set(ids))) == (0, 0, 0), (
            f"missing {sorted(missing)[:5]}, unexpected {sorted(unexpected)[:5]}, {len(ids)} rows for {len(set(ids))}"
        )
        assert all(value == identity / 4 for identity, value, _ in rows)
        odd = {identity: msgspec.json.decode(text)["mixed"] for identity, _, text in rows if text is not None}
        assert odd == self.log.odd
        self.assert_nothing_is_left()
        return sorted(str(path.relative_to(lake)) for path in lake.rglob("*") if path.is_file())

    def assert_nothing_is_left(self) -> None:
        assert os.listdir(self.wal / "batches") == []
        assert os.listdir(self.wal / "spool") == []
        assert list(self.wal.glob("**/*.tmp")) == []
        assert list(self.wal.glob("*.wal*")) == list(self.wal.glob("*.wal.recovered"))
        assert sorted(path.name.split("-")[1] for path in self.wal.glob("*.wal.recovered")) == ["3", "4"]
        assert os.listdir(self.wal / "quarantine") == [NOT_A_LOG]
        free = os.listdir(self.wal / "free")
        assert len(free) <= 2
        assert all(re.fullmatch(r"\d{20}-worker-[12]-\d{8}_\d{6}-\d{6}\.wal", name) for name in free)
        assert "Traceback" not in self.said


def without_batch_ids(keys: list[str]) -> list[str]:
    """Keys in which a batch is named by its place in the order of the batches."""
    pattern = re.compile(r"_([0-9a-f]{12}-\d{8}T\d{6}-(\d+)\.(\d+))_(?=\d+\.parquet\Z)")
    order = sorted({(int(boot), int(seq)) for _, boot, seq in pattern.findall("\n".join(keys).replace("\n", "\n"))})
    found = [match for key in keys if (match := pattern.search(key))]
    order = sorted({(int(match[2]), int(match[3])) for match in found})
    places = {batch: place for place, batch in enumerate(order)}
    return sorted(pattern.sub(lambda match: f"_batch {places[int(match[2]), int(match[3])]}_", key) for key in keys)


@pytest.fixture(scope="module")
def unharmed(
    log: Log, uploaders: Uploaders, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], bytes, Outcome]:
    """What an uploader that nothing happens to makes of the log: keys, schema registry, counters."""
    directory = tmp_path_factory.mktemp("unharmed")
    site = Site(log, directory, local_store(directory), uploaders)
    outcome = site.finish()
    keys = site.assert_shipped_exactly_once()
    return without_batch_ids(keys), (site.wal / "schema.json").read_bytes(), outcome


@pytest.fixture
def site(log: Log, store: Store, uploaders: Uploaders, tmp_path: Path) -> Site:
    return Site(log, tmp_path, store, uploaders)


def test_the_log_makes_several_batches_of_many_objects(unharmed: tuple[list[str], bytes, Outcome]) -> None:
    """What the tests below rely on."""
    keys, schema, outcome = unharmed
    assert {place for key in keys for place in re.findall(r"_batch (\d)_", key)} == {"0", "1", "2", "3"}
    assert len(keys) > 30
    assert sum(key.startswith("_dead_letter/") for key in keys) == 1
    assert b"mixed" in schema
    counters = outcome.counters
    assert (counters["batches"], counters["segments"], counters["retries"]) == (4, 8, 0)
    assert (counters["dead_letters"], counters["damaged"]) == (1, 1)
    assert counters["files"] == len(keys)


STEPS = {
    "before the batch is planned": Step(BATCHES + "plan", "before"),
    "while the manifest is written": Step(DISK + "fsync", "before"),
    "before the manifest has its name": Step(DISK + "rename", "before", 1, MANIFEST),
    "after the manifest has its name": Step(DISK + "rename", "after", 1, MANIFEST),
    "after the batch is planned": Step(BATCHES + "plan", "after"),
    "at the first entry": Step("arcpipe.upload.tables:BatchTables.add", "before"),
    "in the middle of the conversion": Step("arcpipe.upload.tables:BatchTables.add", "before", 40),
    "at the end of the conversion": Step("arcpipe.upload.tables:BatchTables.finish", "before"),
    "when a file that is no log was moved away": Step("os:rename", "after", 1, "quarantine"),
    "before the first put": Step("put", "before"),
    "after the first put": Step("put", "after"),
    "after some puts": Step("put", "after", 6),
    "after a dead letter was put": Step("put", "after", 1, "_dead_letter"),
    "before the last batch is put": Step("put", "before", 1, r"\.4_0\.parquet"),
    "after all puts": Step(BATCHES + "mark_uploaded", "before"),
    "before the manifest says uploaded": Step(DISK + "rename", "before", 2, MANIFEST),
    "after the manifest says uploaded": Step(DISK + "rename", "after", 2, MANIFEST),
    "after marking": Step(BATCHES + "mark_uploaded", "after"),
    "before the schema registry is saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "before"),
    "before the schema registry has its name": Step("pathlib:Path.replace", "before", 1, r"schema\.json"),
    "after the schema registry was saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "after"),
    "after the second change of the registry was saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "after", 2),
    "before a segment goes to the pool": Step("arcpipe.wal.pool:FreePool.put", "before"),
    "after a segment went to the pool": Step("arcpipe.wal.pool:FreePool.put", "after"),
    "after a segment was removed": Step(DISK + "unlink", "after", 1, r"\.wal\.sealed"),
    "before a segment is archived": Step(DISK + "rename", "before", 1, r"\.recovered"),
    "between two archived segments": Step(DISK + "rename", "after", 1, r"\.recovered"),
    "after the segments went": Step("arcpipe.wal.directory:WALDirectory.sync", "before"),
    "after the directory was synced": Step("arcpipe.wal.directory:WALDirectory.sync", "after"),
    "before the manifest is removed": Step(DISK + "unlink", "before", 1, MANIFEST),
    "after the manifest was removed": Step(DISK + "unlink", "after", 1, MANIFEST),
    "after that was synced": Step(BATCHES + "retire", "after"),
}
STEPS_OF_THE_LOCAL_STORE = {
    "before an object has its name": Step("os:rename", "before", 3, r"\.arcpipe-staging"),
    "after an object has its name": Step("os:rename", "after", 3, r"\.arcpipe-staging"),
}
STEPS_OF_S3 = {
    "after the answer to a put came": Step("arcpipe.storage.s3:S3Store._call", "after", 3, "put_object"),
}


def of_store(step: Step, store: Store) -> Step:
    return step._replace(function=store.prefix + "put") if step.function == "put" else step


@pytest.mark.parametrize("name", [*STEPS, *STEPS_OF_THE_LOCAL_STORE, *STEPS_OF_S3])
def test_an_uploader_killed(name: str, site: Site, unharmed: tuple[list[str], bytes, Outcome]) -> None:
    step = (STEPS | STEPS_OF_THE_LOCAL_STORE | STEPS_OF_S3)[name]
    if name not in STEPS and (name in STEPS_OF_S3) != ("s3" in site.store.prefix):
        pytest.skip("a step of the other store")
    assert site.run(die=of_store(step, site.store)).exit_code == -9, site.said
    site.finish()
    assert without_batch_ids(site.assert_shipped_exactly_once()) == unharmed[0]
    assert (site.wal / "schema.json").read_bytes() == unharmed[1]
