"""The uploader dies, or meets an error, at each step that concerns idempotency keys.

The record of each key is there once, and every record without a key.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.wal.format import KeyedPrefix, Prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.steps import Step
from tests.crash.uploader_process import Outcome, Uploaders
from tests.support.directories import batch_files
from tests.support.lake import lake_files, shared_database
from tests.support.sets import long

SEGMENTS = 6
NEW = 12  # requests of a segment that were not sent before
AGAIN = 8  # requests of the segment before that are sent again
PLAIN = 3  # requests without a key, all with equal bytes
PAD = "x" * 40_000  # so that a segment is a batch of its own

WINDOW = "arcpipe.upload.key_window:KeyWindow."
CLAIMS = "arcpipe.upload.key_claims:BatchClaims."
DISK = "arcpipe.disk:Disk."
BATCHES = "arcpipe.upload.batches:Batches."
CLAIMED = r"/idempotency/[^/]*\.claims\b"
KEPT = r"/idempotency/[^/]*\.keys\b"


def add(writer: WALWriter, number: int, key: str | None) -> None:
    group = Group()
    plain = Prefix(KIND_COLUMNAR, "db", {})
    body = msgspec.msgpack.encode(
        {"m": f"m{number % 2}", "columns": {"time": [1_767_225_600], "id": [number], "pad": [PAD]}}
    )
    prefix = plain if key is None else KeyedPrefix(plain, "token", len(key))
    group.add(prefix, body, 1, writer.next_timestamp(), (key or "").encode())
    writer.commit(group)


class Log(NamedTuple):
    """A WAL whose segments have requests, and retries of those of the segment before."""

    wal: Path
    ids: Counter[int]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Make it. Each segment begins with retries, so that they depend on the batch that is uploaded meanwhile."""
    log = Log(tmp_path_factory.mktemp("log") / "wal", Counter())
    for segment in range(SEGMENTS):
        writer = WALWriter(str(log.wal), 1 + segment % 2, WALOptions(max_size_bytes=4 << 20))
        first = segment * NEW
        for number in range(max(0, first - AGAIN), first):
            add(writer, number, f"key-{number}")
        for number in range(first, first + NEW):
            add(writer, number, f"key-{number}")
            log.ids[number] += 1
        add(writer, first, f"key-{first}")
        for _ in range(PLAIN):
            add(writer, -1, None)
            log.ids[-1] += 1
        writer.close()
    return log


@pytest.fixture(scope="module")
def uploaders() -> Iterator[Uploaders]:
    with Uploaders() as uploaders:
        yield uploaders


class Site:
    """A copy of the WAL, its lake, and uploaders."""

    def __init__(self, log: Log, directory: Path, uploaders: Uploaders) -> None:
        self._log = log
        self.wal = directory / "wal"
        self._lake = directory / "lake"
        self._uploaders = uploaders
        shutil.copytree(log.wal, self.wal)

    def run(self, **arms: Any) -> Outcome:
        settings = {"uploader_batch_mb": 1, "wal_dir": self.wal, "storage_url": f"file://{self._lake}"}
        return self._uploaders.run(self.wal, settings, **arms)

    def found(self) -> Counter[int]:
        with shared_database().cursor() as connection:
            files = [str(path) for path in lake_files(self._lake)]
            return Counter(row[0] for row in connection.execute("SELECT id FROM read_parquet(?)", [files]).fetchall())

    def check(self, again: bool = True) -> None:
        """Assert that each record is there once, and that what is left knows all keys."""
        assert self.found() == self._log.ids
        assert batch_files(self.wal) == []
        names = sorted(path.name for path in (self.wal / "idempotency").iterdir())
        assert all(name.endswith(".keys") for name in names), names
        assert len(names) <= 3
        assert "Traceback" not in Path(f"{self.wal}.log").read_text()
        if again:
            writer = WALWriter(str(self.wal), 1, WALOptions())
            for number in range(SEGMENTS * NEW):
                add(writer, number, f"key-{number}")
            writer.close()
            assert self.run(restart_server=True).exit_code == 0
            self.check(again=False)


@pytest.fixture
def site(log: Log, uploaders: Uploaders, tmp_path: Path) -> Site:
    return Site(log, tmp_path, uploaders)


def test_an_uploader_that_nothing_happens_to_drops_retries(site: Site) -> None:
    """The tests below rely on these figures."""
    outcome = site.run()
    counted = {name: outcome.counters[name] for name in ("batches", "repeated", "other_bodies", "keys", "retries")}
    repeated = (SEGMENTS - 1) * AGAIN + SEGMENTS
    assert counted == {
        "batches": SEGMENTS,
        "repeated": repeated,
        "other_bodies": 0,
        "keys": SEGMENTS * NEW,
        "retries": 0,
    }
    site.check()


STEPS = {
    "at the first decision": Step("arcpipe.upload.key_claims:ClaimTry.decide", "after", 1),
    "at the third decision": Step("arcpipe.upload.key_claims:ClaimTry.decide", "after", 3),
    "before the first claims are durable": Step(CLAIMS + "persist", "before", 1),
    "before the claims have their name": Step(DISK + "rename", "before", 1, CLAIMED),
    "after the claims have their name": Step(DISK + "rename", "after", 1, CLAIMED),
    "after the claims of the second batch": Step(DISK + "rename", "after", 2, CLAIMED),
    "before the first object is put": Step("arcpipe.storage.local:LocalStore._put", "before", 1),
    "after the first object was put": Step("arcpipe.storage.local:LocalStore._put", "after", 1),
    "after the third object was put": Step("arcpipe.storage.local:LocalStore._put", "after", 3),
    "after the conversion is known": Step("arcpipe.upload.journal:Journal.append", "after", 3),
    "before a batch is marked as uploaded": Step(BATCHES + "mark_uploaded", "before", 2),
    "after a batch is marked as uploaded": Step(BATCHES + "mark_uploaded", "after", 2),
    "before the keys are kept": Step(WINDOW + "finish", "before", 2),
    "before the keys have their last name": Step(DISK + "rename", "before", 2, KEPT),
    "after the keys have their last name": Step(DISK + "rename", "after", 2, KEPT),
    "before files are merged": Step(WINDOW + "_merge", "before", 2),
    "after files are merged": Step(WINDOW + "_merge", "after", 2),
    "between the two files of a merge": Step(DISK + "unlink", "before", 1, r"/idempotency/0*12\.keys"),
    "after the younger file of a merge is gone": Step(DISK + "unlink", "after", 1, r"/idempotency/0*12\.keys"),
    "after the keys are kept": Step(WINDOW + "finish", "after", 2),
    "after the segments are retired": Step(BATCHES + "retire", "after", 2),
}
OFTEN = (
    "after the claims have their name",
    "before the first object is put",
    "after the third object was put",
    "after the conversion is known",
    "after a batch is marked as uploaded",
    "after the keys have their last name",
    "between the two files of a merge",
)
"""Steps of each run of CI; the others belong to the release set."""
ALSO_FAIL = (
    "before the claims have their name",
    "after the claims have their name",
    "before the keys have their last name",
    "after the keys have their last name",
    "between the two files of a merge",
    "after the first object was put",
)
"""Steps at which an error is raised, instead."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in OFTEN else pytest.param(name, marks=long) for name in STEPS])
def test_a_crash_at_any_step_makes_no_second_record(site: Site, name: str) -> None:
    assert site.run(die=STEPS[name]).exit_code == -9, "the step never came"
    assert site.run(restart_server=True).exit_code == 0
    site.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALSO_FAIL)
def test_an_error_at_a_step_makes_no_second_record(site: Site, name: str) -> None:
    outcome = site.run(fail=STEPS[name])
    assert outcome.exit_code == 0
    site.check(again=False)


@long
@pytest.mark.parametrize("second", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("first", STEPS.values(), ids=STEPS)
def test_two_crashes_make_no_second_record(site: Site, first: Step, second: Step) -> None:
    assert site.run(die=first).exit_code == -9
    site.run(die=second, restart_server=True)
    assert site.run(restart_server=True).exit_code == 0
    site.check(again=False)


# Bugs that these tests must find: each is planted by other code in the place of a function.

PLANTED = {
    "nothing is known": ("arcpipe.upload.key_claims:ClaimTry.decide", lambda self, records: [True] * len(records)),
    "all is known": ("arcpipe.upload.key_claims:ClaimTry.decide", lambda self, records: [False] * len(records)),
    "keys of other batches are not looked at": ("arcpipe.upload.key_window:KeyWindow._horizon", lambda self: 1 << 40),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In this process, by the uploader of the unit tests."""
    from tests.support.uploader import MemoryStore, ids_in, run

    where, bug = PLANTED[name]
    shutil.copytree(log.wal, tmp_path / "wal")
    store = MemoryStore()
    monkeypatch.setattr(where.replace(":", "."), bug)
    run(tmp_path / "wal", store, uploader_batch_mb=1)
    assert ids_in(store) != log.ids
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "wal")
    shutil.copytree(log.wal, tmp_path / "wal")
    store = MemoryStore()
    run(tmp_path / "wal", store, uploader_batch_mb=1)
    assert ids_in(store) == log.ids
