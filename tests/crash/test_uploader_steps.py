"""The uploader dies, or meets an error, at each step of a batch; the next one ships everything once, and only once."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.upload.spares import SPARES as SPARE_FILES
from arcpipe.wal import findings
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.recovery import recover_slot
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.steps import Step
from tests.crash.uploader_process import Outcome, Uploaders
from tests.support.directories import batch_files, copy_at_one_moment
from tests.support.lake import lake_files, shared_database
from tests.support.s3server import S3Bucket
from tests.support.stores import Store, local_store, s3_store

# 2026-01-01T00:00:00Z
NEW_YEAR = 1_767_225_600
FREE_SEGMENTS = 2
ROWS = 50  # of an entry
DATABASES = ("alpha", "beta")
NOT_A_LOG = "worker-9-20250101_000000-000001.wal.sealed"

BATCHES = "arcpipe.upload.batches:Batches."
DISK = "arcpipe.disk:Disk."
JOURNAL = "arcpipe.upload.journal:Journal."
MANIFEST = r"/batches/[^/]*\.json\b"
UPLOADED = r"\.uploaded\.json"
JOURNALED = r"/batches/[^/]*\.journal\b"
SPARES = len(SPARE_FILES)  # they are made first

# MB of segments in a batch: few, so that the WAL makes several batches, and enough for segments of 1 MB to share one.
SMALL_BATCHES = {"uploader_batch_mb": 2}


class Log(NamedTuple):
    """A log directory full of completed segments, and what is to become of it."""

    wal: Path
    ids: set[int]
    odd: dict[int, str]  # by id: the texts in the column `mixed`, which is one of integers
    archived: Sequence[str] = ()  # slots whose segment is to be kept as `.recovered`
    quarantined: Sequence[str] = ()


def add_entry(writer: WALWriter, database: str, columns: Mapping[str, list[Any]], measurement: str) -> None:
    group = Group()
    body = msgspec.msgpack.encode({"m": measurement, "columns": columns})
    group.add(envelope_prefix(KIND_COLUMNAR, database), body, len(columns["id"]), writer.next_timestamp())
    writer.commit(group)


def fill(writer: WALWriter, first: int, entries: int, log: Log) -> int:
    """Writes entries over two databases, two measurements and two hours; the first id that is left."""
    for number in range(entries):
        ids = list(range(first, first + ROWS))
        hour = NEW_YEAR + number // 4 % 2 * 3600
        # The first ones whole numbers, later ones not, here and there something that is no number.
        mixed: list[Any] = [identity if number < 60 else identity + 0.5 for identity in ids]
        for index in range(number % 7, ROWS, 23):
            mixed[index] = log.odd[ids[index]] = f"odd {ids[index]}"
        columns: dict[str, list[Any]] = {
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
    """Make segments of two workers: full, small, left by a crash, damaged, and a file that is not a segment.

    One entry cannot be converted.
    """
    base = tmp_path_factory.mktemp("log")
    log = Log(base / "wal", set(), {}, ("3", "4"), (NOT_A_LOG,))
    source = WALDirectory(base / "source")
    source.make()
    options = WALOptions(max_size_bytes=1 << 20)
    # Names hold the second of their making, and what belongs to a batch is decided by the order of names.
    with mock.patch.object(time, "time_ns", return_value=NEW_YEAR * 10**9):
        writers = {slot: WALWriter(source, slot, options) for slot in (1, 2, 3, 4)}
        first = fill(writers[1], 0, 110, log)
        first = fill(writers[2], first, 60, log)
        add_entry(writers[2], "beta", {"id": []}, "m 0")  # a column of no values makes no rows, and no trouble
        group = Group()
        group.add(envelope_prefix(KIND_COLUMNAR, "beta"), b"\xa4junk", 1, writers[2].next_timestamp())
        writers[2].commit(group)
        first = fill(writers[3], first, 7, log)
        intact = fill(writers[4], first, 3, log)
        for slot in (1, 2, 4):
            writers[slot].close()
        copy_at_one_moment(source.path, log.wal)
        writers[3].close()

    directory = WALDirectory(log.wal)
    recover_slot(directory, 3, directory.segments(ACTIVE, 3))
    (damaged,) = directory.segments(SEALED, 4)
    content = bytearray(Path(damaged.path).read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the second of its three entries
    Path(damaged.path).write_bytes(content)
    lost = set(range(first + ROWS, intact - ROWS))
    log.ids.difference_update(lost)
    for identity in lost:
        log.odd.pop(identity, None)
    (log.wal / NOT_A_LOG).write_bytes(b"this is no log" * 8000)  # so large that two full segments are too much besides
    assert len(directory.segments(SEALED)) == 8
    return log


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """One segment with 7 MB of one hour that cannot be compressed."""
    log = Log(tmp_path_factory.mktemp("large") / "wal", set(), {})
    chance = random.Random(1)
    writer = WALWriter(str(log.wal), 1, WALOptions(max_size_bytes=16 << 20))
    for first in range(0, 3500, ROWS):
        ids = list(range(first, first + ROWS))
        log.ids.update(ids)
        log.odd[first] = "odd"
        columns: dict[str, list[Any]] = {
            "time": [NEW_YEAR + identity for identity in ids],
            "id": ids,
            "value": [identity / 4 for identity in ids],
            "mixed": ["odd", *ids[1:]],
            "pad": [chance.randbytes(2000) for _ in ids],
        }
        add_entry(writer, "alpha", columns, "large")
    writer.close()
    return log


class Target(NamedTuple):
    """Where the objects go."""

    store: Store
    prefix: str  # of the functions that are its steps
    put: str  # the one that puts one object
    left_over: Callable[[], list[str]]  # what is neither object nor gone


@pytest.fixture(params=["local", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "local":
        return local_target(tmp_path)
    s3: S3Bucket = request.getfixturevalue("s3")
    return Target(s3_store(s3, tmp_path), "arcpipe.storage.s3:S3Store.", "put", s3.uploads)


def local_target(directory: Path) -> Target:
    return Target(
        local_store(directory),
        "arcpipe.storage.local:LocalStore.",
        "_put",
        lambda: [path.name for path in (directory / "lake").glob(".arcpipe-staging/*")],
    )


@pytest.fixture(scope="module")
def uploaders() -> Iterator[Uploaders]:
    with Uploaders() as uploaders:
        yield uploaders


class Site:
    """A copy of a log, the store that it goes to, and the uploaders that are let loose on it."""

    def __init__(self, log: Log, directory: Path, target: Target, uploaders: Uploaders) -> None:
        self.log = log
        self.target = target
        self.wal = directory / "wal"
        self._uploaders = uploaders
        shutil.copytree(log.wal, self.wal)

    def run(self, *, restart_server: bool = False, settings: Mapping[str, object] = {}, **arms: Any) -> Outcome:
        wanted = {
            **({} if "constants" in arms else SMALL_BATCHES),
            "wal_dir": self.wal,
            "wal_max_size_mb": 1,
            "wal_free_segments": FREE_SEGMENTS,
            **self.target.store.settings,
            **settings,
        }
        return self._uploaders.run(self.wal, wanted, restart_server=restart_server, **arms)

    def finish(self, **arms: Any) -> Outcome:
        """An uploader that nothing happens to."""
        outcome = self.run(**arms)
        assert outcome.exit_code == 0, self.said
        return outcome

    @property
    def said(self) -> str:
        return Path(f"{self.wal}.log").read_text()

    @property
    def found(self) -> dict[str, int]:
        """Return the issues that an operator is told, by code."""
        record = findings.load(WALDirectory(self.wal))
        return record.counts if record is not None else {}

    def assert_shipped_exactly_once(self, as_by: Unharmed | None = None) -> list[str]:
        """Check that the rows are those of the WAL and nothing is left over; return all keys of the store.

        `as_by`: the objects, the schema registry and the findings, too, are as an uploader that nothing happened to
        made them.
        """
        lake = self.target.store.read()
        with shared_database().cursor() as connection:
            rows = connection.execute(
                "SELECT id, value, mixed_str FROM read_parquet(?, union_by_name = true, hive_partitioning = false)",
                [[str(path) for path in lake_files(lake)]],
            ).fetchall()
        ids = [row[0] for row in rows]
        unique = set(ids)
        missing, unexpected = sorted(self.log.ids - unique), sorted(unique - self.log.ids)
        assert not missing, f"{len(missing)} missing: {missing[:5]} …"
        assert not unexpected, f"{len(unexpected)} that nobody wrote: {unexpected[:5]} …"
        assert len(ids) == len(unique), f"{len(ids) - len(unique)} rows are there twice"
        assert all(value == identity / 4 for identity, value, _ in rows)
        odd = {identity: text for identity, _, text in rows if text is not None}
        assert odd == self.log.odd
        self.assert_nothing_is_left()
        keys = all_keys(lake)
        if as_by is not None:
            assert without_batch_ids(keys) == without_batch_ids(as_by.keys)
            assert (self.wal / "schema.json").read_bytes() == as_by.schema
            assert self.found == as_by.found
        return keys

    def assert_nothing_is_left(self) -> None:
        assert batch_files(self.wal) == []
        assert os.listdir(self.wal / "spool") == []
        assert list(self.wal.glob("**/*.tmp")) == []
        assert list(self.wal.glob("*.wal*")) == list(self.wal.glob("*.wal.recovered"))
        assert sorted(path.name.split("-")[1] for path in self.wal.glob("*.wal.recovered")) == [*self.log.archived]
        assert os.listdir(self.wal / "quarantine") == [*self.log.quarantined]
        free = os.listdir(self.wal / "free")
        assert len(free) <= FREE_SEGMENTS
        assert all(re.fullmatch(r"\d{20}-worker-[12]-\d{8}_\d{6}-\d{6}\.wal", name) for name in free)
        assert "Traceback" not in self.said


def all_keys(lake: Path) -> list[str]:
    return sorted(str(path.relative_to(lake)) for path in lake.rglob("*") if path.is_file())


def without_batch_ids(keys: list[str]) -> list[str]:
    """Keys in which a batch is named by its place in the order of the batches."""
    pattern = re.compile(r"_([0-9a-f]{12}-\d{8}T\d{6}-(\d+)\.(\d+)-[0-9a-f]{8})_(?=\d+\.parquet\Z|\d+-\d+\.msgpack\Z)")
    found = [match for key in keys if (match := pattern.search(key))]
    order = sorted({(int(match[2]), int(match[3])) for match in found})
    places = {batch: place for place, batch in enumerate(order)}
    return sorted(pattern.sub(lambda match: f"_batch {places[int(match[2]), int(match[3])]}_", key) for key in keys)


class Unharmed(NamedTuple):
    """Make the objects of the WAL with an uploader that nothing disturbs."""

    keys: list[str]
    schema: bytes
    counters: dict[str, int]
    found: dict[str, int]


@pytest.fixture(scope="module")
def unharmed(log: Log, uploaders: Uploaders, tmp_path_factory: pytest.TempPathFactory) -> Unharmed:
    directory = tmp_path_factory.mktemp("unharmed")
    site = Site(log, directory, local_target(directory), uploaders)
    counters = site.finish().counters
    keys = site.assert_shipped_exactly_once()
    return Unharmed(keys, (site.wal / "schema.json").read_bytes(), counters, site.found)


@pytest.fixture
def site(log: Log, target: Target, uploaders: Uploaders, tmp_path: Path) -> Site:
    return Site(log, tmp_path, target, uploaders)


def test_the_log_makes_several_batches_of_many_objects(unharmed: Unharmed) -> None:
    """The tests below rely on this."""
    keys = without_batch_ids(unharmed.keys)
    files = [key for key in keys if not key.startswith("_dead_letter/")]
    assert [sum(f"_batch {number}_" in key for key in files) for number in range(4)] == [8, 8, 8, 0]
    assert sum(key.startswith("_dead_letter/") for key in keys) == 1
    assert len(keys) == 25
    assert b"mixed" in unharmed.schema
    counted = {name: unharmed.counters[name] for name in ("batches", "segments", "files", "retries")}
    assert counted == {"batches": 3, "segments": 8, "files": 25, "retries": 0}
    assert (unharmed.counters["dead_letters"], unharmed.counters["damaged"]) == (1, 2)
    assert unharmed.found == {"dead_letters": 1, "damaged_entries": 1}  # a file in quarantine is told by being there


STEPS = {
    "before the batch is planned": Step(BATCHES + "plan", "before"),
    "while the manifest is written": Step(DISK + "fsync", "before", 1 + SPARES),
    "before the manifest has its name": Step(DISK + "rename", "before", 1, MANIFEST),
    "after the manifest has its name": Step(DISK + "rename", "after", 1, MANIFEST),
    "after the batch is planned": Step(BATCHES + "plan", "after"),
    "at the first entry": Step("arcpipe.upload.collect:BatchTables.add", "before"),
    "in the middle of the conversion": Step("arcpipe.upload.collect:BatchTables.add", "before", 40),
    "at the end of the conversion": Step("arcpipe.upload.collect:BatchTables.finish", "before"),
    "when a file that is no log was moved away": Step(DISK + "rename", "after", 1, "quarantine"),
    "before the journal is made": Step(JOURNAL + "append", "before"),
    "while the journal is made": Step(DISK + "fsync", "before", 2 + SPARES),
    "before the journal has its name": Step(DISK + "rename", "before", 1, JOURNALED),
    "after the journal has its name": Step(DISK + "rename", "after", 1, JOURNALED),
    "after the journal was made": Step(JOURNAL + "append", "after"),
    "before the journal's second frame": Step(JOURNAL + "append", "before", 2),
    "after the journal's second frame": Step(JOURNAL + "append", "after", 2),
    "before a frame of the journal is synced": Step(DISK + "fdatasync", "before"),
    "after a frame of the journal was synced": Step(DISK + "fdatasync", "after"),
    "before a finding is durable": Step(DISK + "rename", "before", 1, r"findings\.json"),
    "after all findings are durable": Step(DISK + "rename", "after", 2, r"findings\.json"),
    "before the first put": Step("put", "before"),
    "after the first put": Step("put", "after"),
    "after some puts": Step("put", "after", 6),
    "after a dead letter was put": Step("put", "after", 1, "_dead_letter"),
    "before the last batch is put": Step("put", "before", 1, r"\.3-[0-9a-f]+_0\.parquet"),
    "after all puts": Step(BATCHES + "mark_uploaded", "before"),
    "before the journal says uploaded": Step(BATCHES + "finish", "before"),
    "before the manifest says uploaded": Step(DISK + "rename", "before", 1, UPLOADED),
    "after the manifest says uploaded": Step(DISK + "rename", "after", 1, UPLOADED),
    "after marking": Step(BATCHES + "mark_uploaded", "after"),
    "before the schema registry is saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "before"),
    "before the schema registry has its name": Step(DISK + "rename", "before", 2, r"schema\.json"),
    "between the two names of the schema registry": Step(DISK + "rename", "after", 3, r"schema\.json"),
    "after the schema registry was saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "after"),
    "after the second change of the registry was saved": Step("arcpipe.upload.schema:SchemaRegistry.save", "after", 2),
    "before a segment goes to the pool": Step("arcpipe.wal.pool:FreePool.put", "before"),
    "after a segment went to the pool": Step("arcpipe.wal.pool:FreePool.put", "after"),
    "after a segment was removed": Step(DISK + "unlink", "after", 1, r"\.wal\.sealed"),
    "before a segment is archived": Step(DISK + "rename", "before", 1, r"\.recovered"),
    "between two archived segments": Step(DISK + "rename", "after", 1, r"\.recovered"),
    "after the segments went": Step("arcpipe.wal.directory:WALDirectory.sync", "before"),
    "after the directory was synced": Step("arcpipe.wal.directory:WALDirectory.sync", "after"),
    "before the journal is removed": Step(JOURNAL + "remove", "before"),
    "after the journal was removed": Step(JOURNAL + "remove", "after"),
    "before the manifest is removed": Step(DISK + "unlink", "before", 1, UPLOADED),
    "after the manifest was removed": Step(DISK + "unlink", "after", 1, UPLOADED),
    "after that was synced": Step(BATCHES + "retire", "after"),
}
# While a batch is uploaded, the next one is planned and converted. The first `take` has nothing to take.
STEPS_AHEAD = {
    "before a batch is planned ahead of its turn": Step("arcpipe.upload.look_ahead:LookAhead._planned", "before"),
    "after a batch was planned ahead of its turn": Step("arcpipe.upload.look_ahead:LookAhead._planned", "after"),
    "before a batch that is ahead is taken": Step("arcpipe.upload.look_ahead:LookAhead.take", "before", 2),
    "after a batch that is ahead was taken": Step("arcpipe.upload.look_ahead:LookAhead.take", "after", 2),
}
STEPS_OF_THE_LOCAL_STORE = {
    "before an object has its name": Step("os:rename", "before", 3, r"\.arcpipe-staging"),
    "after an object has its name": Step("os:rename", "after", 3, r"\.arcpipe-staging"),
}
STEPS_OF_S3 = {
    "after the answer to the SDK's put came": Step("arcpipe.storage.s3_client:S3Client.call", "after", 1, "put_object"),
    "after the answer to a put came": Step("arcpipe.storage.s3_repeat:RepeatedPut.send", "after", 3),
}
# With S3, the uploader keeps its own books as it does with any store: these steps are those around its puts, and those
# in which the objects of two batches are under way.
# ARCPIPE_TEST_LONG=1 takes all.
STEPS_AROUND_PUTS = [
    "in the middle of the conversion",
    "before the first put",
    "after some puts",
    "after a dead letter was put",
    "before the last batch is put",
    "after all puts",
    "after the manifest says uploaded",
]
STEPS_WITH_S3 = [
    *(STEPS if os.environ.get("ARCPIPE_TEST_LONG") == "1" else STEPS_AROUND_PUTS),
    *STEPS_AHEAD,
    *STEPS_OF_S3,
]
STEPS_OF_EACH_BATCH = [
    name
    for name, step in STEPS.items()
    if step.pattern in ("", MANIFEST, UPLOADED, JOURNALED) and step.nth <= 2 and "Registry" not in step.function
]
ALL_STEPS = STEPS | STEPS_AHEAD | STEPS_OF_THE_LOCAL_STORE | STEPS_OF_S3


def of_target(step: Step, target: Target) -> Step:
    return step._replace(function=target.prefix + target.put) if step.function == "put" else step


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *(
            pytest.param("local", name, id=f"{name}, local")
            for name in (STEPS | STEPS_AHEAD | STEPS_OF_THE_LOCAL_STORE)
        ),
        *(pytest.param("s3", name, id=f"{name}, s3") for name in STEPS_WITH_S3),
    ],
    indirect=["target"],
)
def test_an_uploader_killed_at_a_step_uploads_exactly_once(name: str, site: Site, unharmed: Unharmed) -> None:
    """An uploader killed at a step has a successor that ships exactly once."""
    assert site.run(die=of_target(ALL_STEPS[name], site.target)).exit_code == -signal.SIGKILL, site.said
    site.finish()
    site.assert_shipped_exactly_once(unharmed)
    assert site.target.left_over() == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", ["local"], indirect=True)
def test_uploaders_killed_again_and_again_upload_exactly_once(seed: int, site: Site, unharmed: Unharmed) -> None:
    """Uploaders and whole servers killed again and again ship exactly once."""
    chance = random.Random(seed)
    deaths = 0
    for name in chance.choices(STEPS_OF_EACH_BATCH, k=8):
        step = of_target(ALL_STEPS[name], site.target)
        outcome = site.run(die=step, restart_server=chance.random() < 0.3)
        # Some day there is nothing left to die for.
        assert outcome.exit_code in (0, -signal.SIGKILL), site.said
        deaths += outcome.exit_code != 0
    assert deaths >= 2, "late steps end a batch each, and there are three"
    site.finish(restart_server=True)
    site.assert_shipped_exactly_once(unharmed)


# Single operations, before or after they have taken effect: an error that is reported says little about which.
STEPS_THAT_MAY_FAIL = {
    "making the manifest": Step(DISK + "create", "before", 1, MANIFEST),
    "writing the manifest": Step(DISK + "write", "before", 1 + SPARES),
    "syncing the manifest": Step(DISK + "fsync", "before", 1 + SPARES),
    "making the journal": Step(DISK + "create", "before", 1, JOURNALED),
    "writing the journal": Step(DISK + "write", "before", 2 + SPARES),
    "syncing the journal": Step(DISK + "fsync", "before", 2 + SPARES),
    "naming the journal": Step(DISK + "rename", "before", 1, JOURNALED),
    "having named the journal": Step(DISK + "rename", "after", 1, JOURNALED),
    "writing the journal's second frame": Step(DISK + "write", "before", 3 + SPARES),
    "syncing the journal's second frame": Step(DISK + "fdatasync", "before"),
    "having synced the journal's second frame": Step(DISK + "fdatasync", "after"),
    "naming the manifest": Step(DISK + "rename", "before", 1, MANIFEST),
    "having named the manifest": Step(DISK + "rename", "after", 1, MANIFEST),
    "syncing the manifest's directory": Step(DISK + "sync_directory", "before", 1 + SPARES, "/batches"),
    "moving away a file that is no log": Step(DISK + "rename", "before", 1, "quarantine"),
    "having moved away a file that is no log": Step(DISK + "rename", "after", 1, "quarantine"),
    "putting an object": Step("put", "before", 3),
    "having put an object": Step("put", "after", 3),
    "naming an object": Step("os:rename", "before", 3, r"\.arcpipe-staging"),
    "having named an object": Step("os:rename", "after", 3, r"\.arcpipe-staging"),
    "marking": Step(DISK + "rename", "before", 1, UPLOADED),
    "having marked": Step(DISK + "rename", "after", 1, UPLOADED),
    "syncing the mark": Step(DISK + "sync_directory", "before", 3 + SPARES, "/batches"),
    "naming the schema registry": Step(DISK + "rename", "before", 2, r"schema\.json"),
    "having named the schema registry": Step(DISK + "rename", "after", 2, r"schema\.json"),
    "moving a segment to the pool": Step(DISK + "rename", "before", 1, "/free/"),
    "having moved a segment to the pool": Step(DISK + "rename", "after", 1, "/free/"),
    "removing a segment": Step(DISK + "unlink", "before", 1, r"\.wal\.sealed"),
    "having removed a segment": Step(DISK + "unlink", "after", 1, r"\.wal\.sealed"),
    "archiving a segment": Step(DISK + "rename", "before", 1, r"\.recovered"),
    "having archived a segment": Step(DISK + "rename", "after", 1, r"\.recovered"),
    "syncing the pool": Step(DISK + "sync_directory", "before", 1, "/free"),
    "syncing the log's directory": Step(DISK + "sync_directory", "before", 1, "/wal$"),
    "removing the manifest": Step(DISK + "unlink", "before", 1, UPLOADED),
    "having removed the manifest": Step(DISK + "unlink", "after", 1, UPLOADED),
    "syncing the removal": Step(DISK + "sync_directory", "before", 4 + SPARES, "/batches"),
}


@pytest.mark.parametrize("name", STEPS_THAT_MAY_FAIL)
@pytest.mark.parametrize("target", ["local"], indirect=True)
def test_a_step_that_fails_is_done_again_without_a_restart(name: str, site: Site, unharmed: Unharmed) -> None:
    outcome = site.finish(fail=of_target(STEPS_THAT_MAY_FAIL[name], site.target))
    assert outcome.counters["retries"] == 1, site.said
    assert "this step fails once" in site.said
    assert re.search("trying again in .* kind=(disk|other) tries=1$", site.said, re.MULTILINE)
    site.assert_shipped_exactly_once(unharmed)


def manifests(wal: Path) -> list[Path]:
    """List the manifests that a killed uploader left: of one batch, and perhaps of the next one, ahead of its turn."""
    found = sorted((wal / "batches").glob("*.json"))
    assert len(found) in (1, 2)
    return found


def test_segments_have_no_second_manifest_if_the_first_may_be_there(site: Site, unharmed: Unharmed) -> None:
    """The sync of its directory fails, and the uploader dies when it has uploaded a part of the batch."""
    outcome = site.run(
        fail=Step(DISK + "sync_directory", "before", 1 + SPARES, "/batches"),
        die=of_target(Step("put", "after", 6), site.target),
    )
    assert outcome.exit_code == -signal.SIGKILL
    planned = [name for path in manifests(site.wal) for name in json.loads(path.read_bytes())["segments"]]
    assert len(planned) == len(set(planned))
    site.finish()
    site.assert_shipped_exactly_once(unharmed)


def test_removing_strays_goes_on_where_it_failed(
    large: Log, target: Target, uploaders: Uploaders, tmp_path: Path
) -> None:
    """Of thousands of keys one always fails: the batch must not be uploaded again for that."""
    site = Site(large, tmp_path, target, uploaders)
    first = site.run(die=Step(BATCHES + "mark_uploaded", "before"), settings={"parquet_max_file_mb": 1})
    second = site.finish(fail=Step(target.prefix + "delete", "before"))
    assert second.counters["retries"] == 1
    assert second.counters["files"] - first.counters["files"] == len(site.assert_shipped_exactly_once()) == 1


def test_segments_completed_since_the_crash_are_a_batch_of_their_own(log: Log, site: Site) -> None:
    site.run(die=of_target(Step("put", "after", 6), site.target))
    more = Log(site.wal, set(), {})
    writer = WALWriter(str(site.wal), 1)
    fill(writer, 1_000_000, 10, more)
    writer.close()
    begun = [path.stem for path in manifests(site.wal)]
    site.finish()
    site.log = log._replace(ids=log.ids | more.ids, odd=log.odd | more.odd)
    keys = site.assert_shipped_exactly_once()
    assert [sum(f"_{batch}_" in key for key in keys) for batch in begun] == [8] * len(begun)


def test_a_batch_keeps_its_layout_when_the_setting_changes(site: Site, unharmed: Unharmed) -> None:
    site.run(die=of_target(Step("put", "after", 6), site.target))
    begun = [path.stem for path in manifests(site.wal)]
    site.finish(settings={"storage_layout": "hive"})
    keys = [key for key in site.assert_shipped_exactly_once() if key.endswith(".parquet")]
    first = [key for key in keys if any(f"_{batch}_" in key for batch in begun)]
    others = sorted(set(keys) - set(first))
    assert len(first) == 8 * len(begun)
    assert len(others) == 24 - len(first)
    assert all("/2026/01/01/0" in key for key in first)
    assert all("/year=2026/month=01/day=01/hour=0" in key for key in others)


def test_a_batch_goes_whole_to_the_store_of_a_changed_setting(
    log: Log, uploaders: Uploaders, unharmed: Unharmed, tmp_path: Path
) -> None:
    """A batch goes as a whole to another store when the setting changes and the WAL says so."""
    target = local_target(tmp_path)
    site = Site(log, tmp_path, target, uploaders)
    url = target.store.settings["storage_url"]
    site.run(die=of_target(Step("put", "after", 6), target), settings={"storage_url": f"{url}-before"})
    site.finish()
    site.assert_shipped_exactly_once(unharmed)
    assert re.search(f"batch .* was begun in {url}-before and is uploaded to {url} now", site.said)


@pytest.mark.parametrize(
    ("before", "after", "strays"),
    [
        pytest.param({"parquet_max_file_mb": 1}, {}, True, id="fewer files"),
        pytest.param({}, {"parquet_max_file_mb": 1}, False, id="more files"),
        pytest.param(
            {"parquet_max_file_mb": 1, "parquet_row_group_rows": 150},
            {"parquet_max_file_mb": 1, "parquet_row_group_rows": 400},
            True,
            id="files cut elsewhere",
        ),
    ],
)
def test_objects_that_the_second_try_does_not_make_are_removed(
    before: dict[str, object],
    after: dict[str, object],
    strays: bool,
    large: Log,
    target: Target,
    uploaders: Uploaders,
    tmp_path: Path,
) -> None:
    site = Site(large, tmp_path, target, uploaders)
    site.run(die=Step(BATCHES + "mark_uploaded", "before"), settings=before)
    first = all_keys(target.store.read())
    site.finish(settings=after)
    shutil.rmtree(tmp_path / "downloaded", ignore_errors=True)
    second = site.assert_shipped_exactly_once()
    assert first != second
    removed = set(first).difference(second)
    assert bool(removed) == strays
    assert site.said.count("which an earlier try of batch") == len(removed)

    reference = tmp_path / "reference"
    reference.mkdir()
    unharmed = Site(large, reference, local_target(reference), uploaders)
    unharmed.finish(settings=after)
    assert without_batch_ids(second) == without_batch_ids(unharmed.assert_shipped_exactly_once())


# Parts as small as S3 takes them.
SMALL_PARTS = {
    "arcpipe.storage.s3:S3Store.__init__.__kwdefaults__": {"multipart_threshold_bytes": 5 << 20, "part_bytes": 5 << 20}
}


@pytest.mark.parametrize("operation", ["create_multipart_upload", "upload_part", "complete_multipart_upload"])
@pytest.mark.parametrize("target", ["s3"], indirect=True)
def test_an_uploader_killed_within_an_upload_in_parts_ships_exactly_once(
    operation: str, large: Log, target: Target, uploaders: Uploaders, tmp_path: Path
) -> None:
    site = Site(large, tmp_path, target, uploaders)
    # The check at the start begins an upload, too.
    step = Step("arcpipe.storage.s3_client:S3Client.call", "after", 1, f"{operation}.*parquet")
    assert site.run(die=step, constants=SMALL_PARTS).exit_code == -signal.SIGKILL, site.said
    site.finish(constants=SMALL_PARTS)
    site.assert_shipped_exactly_once()
    # At most the one that was cut off: it is aborted by `check` once it is a day old, which all are that moto dates.
    assert len(target.left_over()) <= 1
