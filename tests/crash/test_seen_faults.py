"""Faults of the disk, of small files and of people that once lost or doubled acknowledged records, on real servers.

Each was seen on a release. Reads that fail are in `test_read_errors`, devices that fail in `test_real_devices`.
"""

from __future__ import annotations

import errno
import json
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgpack
import pyarrow.parquet as pq
import pytest

from arcpipe.wal.reader import WALReader
from tests.crash.io_faults import FaultyIO, Rule
from tests.crash.numbered import (
    CATCH_UP_SECONDS,
    V2,
    Account,
    KilledServers,
    Numbered,
    each_once,
    is_shipped,
    is_told_by_health,
    problems,
)
from tests.support.http import pack
from tests.support.lake import lake_files, lake_rows
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.server import Server, serve_and_fail
from tests.support.sets import long
from tests.support.stores import s3_store
from tests.support.waiting import wait_until

ACTIVE = "*/worker-*.wal"
MANIFESTS = "*/batches/*"
HEADER = struct.Struct(">IQI")

pytestmark = pytest.mark.timeout(300)


# Values that look like the WAL's own bytes


def now_us() -> int:
    return time.time_ns() // 1000


def look_alikes() -> bytes:
    """Headers that claim a length which fits the file and a time of today; no checksum holds."""
    head = HEADER.pack(40_000, now_us(), 0x12345678) + b"\x94\x01"
    return head * 5000


def whole_entries(segment: Path) -> bytes:
    """Entries for another database that would be taken for true: with and without an identity, as far as it is known.

    Slot and number stand in the segment's name, which a client may guess; the rest of an identity is random.
    """
    slot, seq = segment.name.split(".")[0].split("-")[1::2]
    identity = int(slot).to_bytes(2, "big") + int(seq).to_bytes(6, "big") + bytes(8)
    entries = []
    for number, meta in enumerate([{}, {"in": identity}, {}, {"in": identity}]):
        body = {"m": "stolen", "columns": {"number": [number]}}
        payload = pack([1, "secret", meta, body])
        # The first two are of the present, the others of a moment from now: above whatever comes before them.
        entries.append(HEADER.pack(len(payload), now_us() + number // 2 * 3_600_000_000, zlib.crc32(payload)) + payload)
    return b"".join(entries) * 20


@pytest.mark.parametrize("make", [lambda segment: look_alikes(), whole_entries], ids=["headers", "whole entries"])
@pytest.mark.parametrize("place", ["header", "payload"])
def test_one_flipped_byte_in_an_entry_whose_value_looks_like_entries(
    tmp_path: Path, make: Callable[[Path], bytes], place: str
) -> None:
    """All but the entry that was hit are there, and nothing that was never sent as a record."""
    server = Server(tmp_path, server_workers=1, flush_max_age_seconds=3600)
    with server:
        numbered = Numbered(server, size_bytes=100)
        numbered.write(1)
        segment = max(server.wal.glob("worker-*.wal"), key=lambda path: len(path.read_bytes().rstrip(b"\0")))
        value = make(segment)
        body = msgpack.packb({"m": "numbered", "columns": {"number": [-1], "value": [value]}}, use_bin_type=True)
        assert server.post(V2, body).status == 202
        numbered.write(48)
        server.kill_all()
        data = bytearray(segment.read_bytes())
        at = data.index(value)
        # The entry's header, with its length, stands right before its payload, which begins with four and the kind.
        payload = data.rindex(b"\x94\x01\xa7default", 0, at)
        data[payload - 16 + 1 if place == "header" else payload + 9] ^= 0x10
        segment.write_bytes(data)
        server.settings["flush_max_age_seconds"] = 0.2
        server.restart()
        wait_until(lambda: is_shipped(server) and numbered.numbers_in_lake(), "the backlog to be empty")
        is_told = is_told_by_health(server)
        server.stop()
        databases = sorted({file.relative_to(server.lake).parts[0] for file in lake_files(server.lake)})
        seen = str(numbered.account()), databases, is_told
    assert seen == (each_once(49), ["default"], True)


# Refused means refused


def test_a_refused_record_is_there_once_after_a_crash_and_a_retry(tmp_path: Path, faults: FaultyIO) -> None:
    """The disk fails one sync, the client is told that nothing was written, the worker dies, the client tries again."""
    server = Server(tmp_path, server_workers=1, flush_max_age_seconds=3600)  # a sealing's sync takes no fault
    server.variables |= faults.variables
    with server:
        numbered = Numbered(server)
        numbered.write(3)
        answers = []
        for _ in range(3):  # each is a race with whatever else the worker does after the answer
            number = numbered.next_number()
            with faults.rule("sync", ACTIVE, errno.EIO, process="*ingest*", times=1) as failing:
                refused = numbered.try_to_write(number)
                dead = server.kill("ingest 1")
                assert failing.hits == 1
            answers.append((refused.status, "nothing was written" in refused.reason))
            server.wait_for_successor("ingest 1", dead)
            wait_until(partial(_is_taken, numbered, number), "the retry to be taken")
        server.stop()
        seen = str(numbered.account()), answers
    assert seen == (each_once(6), [(503, True)] * 3)


def _is_taken(numbered: Numbered, number: int) -> bool:
    return numbered.try_to_write(number).status == 202


def test_a_cut_that_fails_too_says_that_the_records_may_be_there(tmp_path: Path, faults: FaultyIO) -> None:
    server = Server(tmp_path, server_workers=1)
    server.variables |= faults.variables
    with server:
        numbered = Numbered(server)
        numbered.write(3)
        with faults.rule("sync truncate", ACTIVE, errno.EIO, process="*ingest*") as failing:
            refused = numbered.try_to_write()
            assert failing.hits >= 1
        assert (refused.status, "may have been written" in refused.reason) == (503, True), refused
        wait_until(lambda: numbered.try_to_write().status == 202, "it to go on by itself")
        server.stop()
        account = numbered.account()
    assert (account.lost, account.twice) == ([], [])


# The async mode


def test_a_background_sync_that_fails_once_loses_nothing_without_a_crash(tmp_path: Path, faults: FaultyIO) -> None:
    """As many file systems do it: after the error the pages count as clean, and what they held is gone."""
    server = Server(tmp_path, server_workers=1, wal_sync_mode="async", wal_async_interval_ms=400)
    server.settings["flush_max_age_seconds"] = 3600
    server.variables |= faults.variables
    with server:
        numbered = Numbered(server)
        numbered.write(20)
        failing = faults.set("sync", ACTIVE, errno.EIO, process="*ingest*", times=1, effect="drop")
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while not failing.hits or len(numbered.acknowledged) < 60:
            numbered.try_to_write()
            assert time.monotonic() < deadline
        wait_until(lambda: numbered.try_to_write().status == 202, "it to go on by itself")
        numbered.write(10)
        server.stop()
        account = str(numbered.account())
    assert account == each_once(len(numbered.acknowledged))


# Small files


class Interrupted:
    """A server whose uploader has planned a batch and can put no object of it."""

    def __init__(self, killed_servers: KilledServers, tmp_path: Path, faults: FaultyIO, workers: int = 1) -> None:
        self.numbered = killed_servers.copy(tmp_path, 20 * workers, workers)
        self.server = server = self.numbered.server
        self._faults = faults
        server.variables |= faults.variables
        self._putting = faults.set("rename", "*/lake/default/*", errno.EIO, process="*uploader*")
        self._marking: Rule | None = None
        server.start()
        wait_until(lambda: self._putting.hits and self.manifests(), "a batch that cannot be put")

    def let_put(self) -> None:
        """Returns when all objects are put, and that this is so could not be written down."""
        marking = self._faults.set("create rename write", MANIFESTS, errno.EIO, process="*uploader*")
        self._marking = marking
        self._putting.end()
        wait_until(lambda: marking.hits and self.numbered.numbers_in_lake(), "objects", CATCH_UP_SECONDS)

    def end_faults(self) -> None:
        for rule in filter(None, (self._putting, self._marking)):
            rule.end()

    def manifests(self) -> list[Path]:
        return sorted((self.server.wal / "batches").glob("*.json"))


@pytest.fixture
def interrupted(killed_servers: KilledServers, tmp_path: Path, faults: FaultyIO) -> Iterator[Interrupted]:
    interrupted = Interrupted(killed_servers, tmp_path, faults)
    server = interrupted.server
    try:
        interrupted.let_put()
        server.kill_all()
        interrupted.end_faults()
        yield interrupted
    finally:
        server.end()


def flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= bit
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no UTF-8": lambda data: flip(data, data.index(b"worker-"), 0x80),
    "another segment": lambda data: flip(data, data.index(b"-000001.wal") + 6, 0x04),
    "no JSON": lambda data: flip(data, 0, 0x01),
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize(
    ("damage", "extent"),
    [
        ("no UTF-8", "the manifest"),
        ("another segment", "the manifest"),
        ("empty", "the manifest"),
        ("no UTF-8", "all of the batch"),
        pytest.param("no JSON", "the manifest", marks=long),
        pytest.param("truncated", "the manifest", marks=long),
        pytest.param("empty", "all of the batch", marks=long),
    ],
)
def test_a_damaged_manifest(interrupted: Interrupted, damage: str, extent: str) -> None:
    """All else is shipped, and nothing is there twice. Either the batch is finished all the same, or it waits.

    If it waits, then health tells, the damaged files are kept somewhere, and once they are mended all is there once.
    """
    server, numbered = interrupted.server, interrupted.numbered
    (manifest,) = interrupted.manifests()
    of_batch = sorted(path for path in manifest.parent.iterdir() if manifest.stem in path.name)
    good = {path: path.read_bytes() for path in (of_batch if extent != "the manifest" else [manifest])}
    bad = {path: DAMAGES[damage](data) for path, data in good.items()}
    for path, data in bad.items():
        path.write_bytes(data)
    with server:
        later = [numbered.next_number() for _ in range(5)]
        for number in later:
            assert numbered.try_to_write(number).status == 202
        ships_on = _comes(lambda: set(later) <= set(numbered.numbers_in_lake()))
        twice = numbered.account().twice
        wait_until(lambda: is_shipped(server) or problems(server), "the batch to be finished, or to be told")
        if not _comes(lambda: is_shipped(server), 5):
            assert is_told_by_health(server)
            server.kill_all()
            for path, data in bad.items():
                kept = [file for file in server.wal.rglob(f"{path.name}*") if file.read_bytes() == data]
                assert len(kept) == 1, f"{path.name} is not kept"
                kept[0].unlink()
                path.write_bytes(good[path])
            server.restart()
            wait_until(lambda: is_shipped(server), "the mended batch to be finished")
        server.stop()
        seen = ships_on, twice, str(numbered.account())
    assert seen == (True, [], each_once(25))


def _comes(condition: Callable[[], bool], seconds: float = CATCH_UP_SECONDS) -> bool:
    """Whether a condition comes true in time."""
    try:
        return wait_until(condition, "it", seconds)
    except AssertionError:
        return False


def of_another_program(data: bytes, **changes: object) -> bytes:
    """A manifest with other values and, if it has a checksum, a right one: its last field, of all bytes before it."""
    content = json.loads(data)
    checksum = content.pop("crc32", None)
    body = json.dumps(content | changes, separators=(",", ":")).encode()
    return body if checksum is None else b'%b,"crc32":"%08x"}' % (body[:-1], zlib.crc32(body[:-1]))


UNKNOWN: dict[str, dict[str, object]] = {"a newer version": {"version": 99}, "an unknown word": {"layout": "flat"}}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_manifest_of_another_program(interrupted: Interrupted, what: str) -> None:
    """Nothing is shipped and nothing removed, writes go on, and the program that knows it finishes it."""
    server, numbered = interrupted.server, interrupted.numbered
    (manifest,) = interrupted.manifests()
    good = manifest.read_bytes()
    changed = of_another_program(good, **UNKNOWN[what])
    assert of_another_program(good) == good
    manifest.write_bytes(changed)
    with server:
        assert numbered.try_to_write().status == 202
        is_told = is_told_by_health(server)
        is_named = _comes(lambda: manifest.name in server.log)
        server.kill_all()
        kept = manifest.exists() and manifest.read_bytes() == changed
        manifest.write_bytes(good)
        server.restart()
        wait_until(lambda: is_shipped(server), "the batch to be finished")
        server.stop()
        seen = is_told, is_named, kept, str(numbered.account())
    assert seen == (True, True, True, each_once(21))


def one_column(server: Server, number: int, value: object) -> None:
    server.write({"m": "typed", "columns": {"number": [number], "note": [value]}})


def types_in_lake(server: Server) -> set[str]:
    """The types that the column has in any file."""
    schemas = map(pq.read_schema, lake_files(server.lake, measurement="typed"))
    return {str(schema.field("note").type) for schema in schemas if "note" in schema.names}


@pytest.mark.parametrize("damage", [pytest.param("no UTF-8", marks=long), "truncated", "empty", "EIO"])
def test_a_column_keeps_its_type_over_a_bad_registry(tmp_path: Path, faults: FaultyIO, damage: str) -> None:
    """The instance starts and takes writes. Whatever the uploader does, no file has another type for the column."""
    server = Server(tmp_path, server_workers=1)
    server.variables |= faults.variables
    with server:
        one_column(server, 0, "text")
        server.wait_for_rows(1)
        server.stop()
        registry = server.wal / "schema.json"
        good = registry.read_bytes()
        failing = None
        if damage == "EIO":
            failing = faults.set("open read", "*/schema.json", errno.EIO)
        else:
            damages = DAMAGES | {"no UTF-8": lambda data: flip(data, data.index(b"typed"), 0x80)}
            registry.write_bytes(damages[damage](good))
        server.start()
        one_column(server, 1, 5)
        if failing is not None:
            wait_until(lambda: failing.hits, "a read that fails")

        def is_done() -> bool:
            return is_shipped(server) and len(lake_rows(server.lake)) == 2

        wait_until(lambda: failing is not None or problems(server) or is_done(), "it to be done, or to be told")
        if not _comes(is_done, 5):
            # It waits for somebody.
            is_told = failing is not None or is_told_by_health(server)
            server.kill_all()
            if failing is not None:
                failing.end()
            else:
                registry.write_bytes(good)  # from a backup
            server.restart()
        else:
            is_told = True  # nothing is left to be done
        server.wait_for_rows(2)
        server.stop()
        numbers = [row["number"] for row in lake_rows(server.lake, measurement="typed")]
        seen = is_told, types_in_lake(server), sorted(numbers)
    assert seen == (True, {"string"}, [0, 1])


@pytest.mark.parametrize(
    "damage", ["truncated", "EIO", *(pytest.param(damage, marks=long) for damage in ("empty", "no UTF-8", "EACCES"))]
)
def test_a_bad_node_file_refuses_the_start_and_stays(tmp_path: Path, faults: FaultyIO, damage: str) -> None:
    """Guessing a new identity could overwrite objects."""
    server = Server(tmp_path, server_workers=1)
    server.variables |= faults.variables
    with server:
        server.write({"m": "cpu", "columns": {"usage": [0.5]}})
        server.wait_for_rows(1)
        server.stop()
        node = server.wal / "node.json"
        bad = good = node.read_bytes()
        failing = None
        if damage in ("EIO", "EACCES"):
            failing = faults.set("open read", "*/node.json", getattr(errno, damage))
        else:
            bad = (DAMAGES | {"no UTF-8": lambda data: flip(data, 2, 0x80)})[damage](good)
            node.write_bytes(bad)
        server.launch()
        assert server.exit_code() == 1
        last = server.log.splitlines()[-1]
        assert "node.json" in last, last
        assert "Traceback" not in server.log
        assert node.read_bytes() == bad
        if failing is not None:
            failing.end()
        node.write_bytes(good)
        server.start()
        server.write({"m": "cpu", "columns": {"usage": [1.5]}})
        server.wait_for_rows(2)
        server.stop()


@pytest.mark.parametrize("when", ["before the first put", "after the last put"])
def test_a_redo_after_a_segment_vanished_overwrites_nothing(
    killed_servers: KilledServers, tmp_path: Path, faults: FaultyIO, when: str
) -> None:
    """Objects that were put stay, as nothing else holds their rows. The others are lost, and health tells."""
    interrupted = Interrupted(killed_servers, tmp_path, faults, workers=2)
    server, numbered = interrupted.server, interrupted.numbered
    try:
        if when == "after the last put":
            interrupted.let_put()
        server.kill("uploader")
        in_segments = {path: _numbers_of(path) for path in sorted(server.wal.glob("worker-*.wal.sealed"))}
        gone, *kept = (path for path, numbers in in_segments.items() if numbers)
        assert len(kept) == 1
        gone.unlink()
        interrupted.end_faults()
        wait_until(lambda: is_shipped(server), "the redo", CATCH_UP_SECONDS)
        is_told = is_told_by_health(server, CATCH_UP_SECONDS if when == "before the first put" else 0)
        server.stop()
        seen = str(numbered.account()), is_told
    finally:
        server.end()
    lost = in_segments[gone] if when == "before the first put" else []
    assert seen == (str(Account(len(numbered.acknowledged), sorted(lost), [], [])), bool(lost))


def _numbers_of(segment: Path) -> list[int]:
    return [record["number"] for batch in WALReader(segment).read_all() for record in batch]


# One instance, and what it outlives


def test_a_second_instance_is_refused_though_the_lock_file_was_removed(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        numbered = Numbered(server)
        numbered.write(3)
        (server.wal / "LOCK").unlink()
        (tmp_path / "second").mkdir()
        settings = server.settings | {"shutdown_drain_seconds": 1}
        try:
            refused = serve_and_fail(tmp_path / "second", **settings)
        except subprocess.TimeoutExpired:
            refused = None
        numbered.write(3)
        server.stop()
        account = str(numbered.account())
    assert refused is not None, "the second instance ran"
    assert refused.returncode == 1
    assert "is in use by another arcpipe" in refused.stderr
    assert account == each_once(6)


def test_a_worker_that_finds_a_full_disk_at_the_start_waits_for_space(tmp_path: Path, faults: FaultyIO) -> None:
    """Others keep the disk full: a reason to try again, not to end the instance."""
    server = Server(tmp_path, server_workers=1)
    server.variables |= faults.variables
    full = faults.set("create write", f"*/{tmp_path.name}/wal/*", errno.ENOSPC, process="*ingest*")
    server.launch()
    try:
        wait_until(lambda: full.hits, "a worker that finds no space")
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 15 or not server.is_running, "some time to pass", 60)
        assert server.is_running, f"it gave up after {time.monotonic() - started:.0f} s"
        full.end()
        server.wait_until_serving()
        numbered = Numbered(server)
        numbered.write(3)
        server.stop()
        assert str(numbered.account()) == each_once(3)
    finally:
        server.end()


@pytest.mark.parametrize("when", ["at the start", "while it runs"])
def test_a_fork_that_fails_is_tried_again(tmp_path: Path, faults: FaultyIO, when: str) -> None:
    server = Server(tmp_path, server_workers=2)
    server.variables |= faults.variables
    if when == "at the start":
        failing = faults.set("fork", "", errno.EAGAIN, times=3)
    with server:
        numbered = Numbered(server)
        numbered.write(3)
        if when == "while it runs":
            failing = faults.set("fork", "", errno.EAGAIN, times=3)
            dead = server.kill("ingest 1")
            wait_until(lambda: not server.is_running or server.pids().get("ingest 1", dead) != dead, "a successor")
            assert server.is_running, f"it ended with exit code {server.exit_code()}"
        assert failing.hits == 3
        numbered.write(3)
        server.stop()
        assert str(numbered.account()) == each_once(6)


def test_a_role_that_may_not_list_the_bucket_outlives_a_crash(tmp_path: Path, s3: S3Bucket, faults: FaultyIO) -> None:
    """The uploader dies after its last put and before it has written that down: the redo has to do without a list."""
    with FaultyProxy(s3.endpoint_url) as proxy:
        proxy.deny(r"GET /[^/?]+/?(\?|$)")  # of a bucket: its objects, or the uploads in it
        store = s3_store(s3, tmp_path)
        server = Server(tmp_path, server_workers=1, **store.settings | {"storage_s3_endpoint_url": proxy.url})
        server.variables |= faults.variables
        with server:
            numbered = Numbered(server)
            numbered.write(1)
            wait_until(lambda: proxy.requests["PUT"] and is_shipped(server), "a batch before the crash")
            proxy.go_down()
            numbered.write(10)
            wait_until(lambda: "uploading" in server.log and "trying again" in server.log, "a put that fails")
            marking = faults.set("create rename write", MANIFESTS, errno.EIO, process="*uploader*")
            proxy.come_up()
            wait_until(lambda: marking.hits, "the note that all is put", CATCH_UP_SECONDS)
            dead = server.kill("uploader")
            marking.end()
            server.wait_for_successor("uploader", dead)
            numbered.write(10)
            try:
                wait_until(lambda: is_shipped(server), "the redo", CATCH_UP_SECONDS)
                redone = True
            except AssertionError:
                redone = False
                server.send_signal(signal.SIGKILL)
            if redone:
                server.stop()
            rows = [row["number"] for row in lake_rows(store.read())]
    assert redone, "the redo waits for a permission that it does not need"
    assert sorted(rows) == numbered.acknowledged
