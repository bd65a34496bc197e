"""The window of idempotency keys against a model: sequences of keys and batches, tries that end anywhere, restarts."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.counters import Counters, Uploader
from arcpipe.disk import Disk
from arcpipe.upload import key_files
from arcpipe.upload.key_files import RECORD
from arcpipe.upload.key_index import Run
from arcpipe.upload.key_record import key_record
from arcpipe.upload.key_window import WAITING_KEYS, KeyWindow
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import KeyedPrefix, Prefix
from tests.support.directories import flip_bit
from tests.support.sets import IS_LONG
from tests.support.wal_doubles import FaultyDisk

WINDOW = 100  # seconds
LAG = 10  # seconds by which an entry may be behind an earlier one


class Entry(NamedTuple):
    """An entry with a key."""

    key: str
    second: int
    body: bytes = b"\xc0"
    database: str = "db"
    token: str | None = None
    part: int = 0

    def record(self) -> bytes:
        plain = Prefix(KIND_COLUMNAR, self.database, {})
        prefix = KeyedPrefix(plain, self.token, len(self.key), self.part)
        prefix.bind(b"i" * 16)
        record = key_record(self.second * 1_000_000, prefix.data + self.key.encode() + self.body, None)
        assert record is not None
        return record


class Node:
    """A WAL directory, and the window of its present uploader."""

    def __init__(
        self,
        wal: Path,
        disk: Disk | None = None,
        window: float = WINDOW,
        max_keys: int = 10_000,
        waiting_keys: int = WAITING_KEYS,
    ) -> None:
        self.directory = WALDirectory(wal, disk)
        self.directory.make()
        self.folder = wal / "idempotency"
        self.block = Counters(1).uploader
        self._limits = window, max_keys, waiting_keys
        self.batches: dict[str, str] = {}  # under way, with those that they replace
        self.restart()

    def restart(self, kept: tuple[str, ...] = ()) -> None:
        self.window = KeyWindow(self.directory, self.block, *self._limits, pauses=(0.0, 0.0))
        self.window.load(self.batches, kept)

    def attempt(self, batch: str, entries: list[Entry], chunk: int = 3, persist: bool = True) -> list[bool]:
        """A try at a batch, as far as these entries."""
        self.batches.setdefault(batch, "")
        claims = self.window.begin(batch)
        decided: list[bool] = []
        for start in range(0, len(entries), chunk):
            decided += claims.decide([entry.record() for entry in entries[start : start + chunk]])
        if persist:
            claims.persist()
        return decided

    def finish(self, batch: str) -> None:
        self.window.finish(batch)
        self.batches.pop(batch)

    def ship(self, batch: str, entries: list[Entry]) -> list[bool]:
        decided = self.attempt(batch, entries)
        self.finish(batch)
        return decided

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "wal")  # it syncs, as a server does


def entries(keys: str, second: int = 1000) -> list[Entry]:
    return [Entry(key, second) for key in keys]


class HastyDisk(Disk):
    """A disk that syncs nothing: a model needs many steps, and no power cut."""

    def fsync(self, fd: int) -> None:
        pass

    fdatasync = fsync

    def sync_directory(self, path: str) -> None:
        pass


class Model:
    """What the window promises: an entry counts if no earlier one of its key counted within the window around it."""

    def __init__(self) -> None:
        self._counted: dict[str, list[int]] = {}

    def decide(self, batch: list[Entry]) -> list[bool]:
        decided = []
        for entry in batch:
            before = self._counted.setdefault(entry.key, [])
            counts = all(abs(entry.second - second) > WINDOW for second in before)
            if counts:
                before.append(entry.second)
            decided.append(counts)
        return decided


class Step(NamedTuple):
    """A batch, and how its tries end."""

    batch: list[tuple[str, int]]  # keys, and seconds after the begin of the batch
    ahead: int  # seconds by which its entries are after those of the batch before
    tries: list[tuple[int, bool, bool]]  # before the last: entries read, whether durable, and whether the process ends
    chunk: int
    restart: bool  # afterwards


STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, LAG)), max_size=12),
        st.sampled_from([0, 1, 20, WINDOW - LAG, WINDOW + 1, 2 * WINDOW]),
        st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=2),
        st.integers(1, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=1000 if IS_LONG else 60, deadline=None)
@given(STEPS)
def test_decisions_are_those_of_the_model(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node, model, base = Node(Path(folder), HastyDisk()), Model(), 1000
        for number, step in enumerate(map(Step._make, steps)):
            base += step.ahead
            batch = [Entry(key, base + second) for key, second in step.batch]
            wanted = model.decide(batch)
            name = f"batch-{number}"
            for read, is_durable, ends in step.tries:
                assert node.attempt(name, batch[:read], step.chunk, is_durable) == wanted[:read]
                if ends:
                    node.restart()
            assert node.attempt(name, batch, step.chunk) == wanted
            node.finish(name)
            if step.restart:
                node.restart()
        assert all(name.endswith(".keys") for name in node.files())


@pytest.mark.slow
@settings(max_examples=1000 if IS_LONG else 40, deadline=None)
@given(
    keys=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5 * WINDOW)), max_size=20),
    read=st.integers(0, 20),
    chunks=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_entries_of_any_age_are_decided_alike_however_many_at_a_time(
    keys: list[tuple[str, int]], read: int, chunks: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), HastyDisk())
        batch = [Entry(*each) for each in keys]
        wanted = Model().decide(batch)
        assert node.attempt("1", batch[:read], chunks[0]) == wanted[:read]
        node.restart()
        assert node.attempt("1", batch, chunks[1]) == wanted
        node.finish("1")
        assert not any(node.attempt("2", batch, chunks[0]))


@pytest.mark.slow
@settings(max_examples=1000 if IS_LONG else 60, deadline=None)
@given(
    batches=st.lists(st.text("abcdefgh", max_size=8), min_size=2, max_size=6),
    read=st.lists(st.integers(0, 8), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    restarts=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_batches_that_are_set_aside_keep_their_decisions(
    batches: list[str], read: list[int], order: list[int], restarts: list[bool]
) -> None:
    """Each batch is tried as far as it can be read; then they end in another order. Each key counts once."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), HastyDisk())
        restart = iter(restarts)
        first = {}
        for number, keys in enumerate(batches):
            first[number] = node.attempt(str(number), entries(keys[: read[number]]))
            if next(restart):
                node.restart()
        counted = []
        for number in [number for number in order if number < len(batches)]:
            decided = node.ship(str(number), entries(batches[number]))
            assert decided[: read[number]] == first[number]
            counted += [key for key, counts in zip(batches[number], decided, strict=True) if counts]
            if next(restart):
                node.restart()
        assert sorted(counted) == sorted(set("".join(batches)))


def test_a_key_is_of_its_database_token_and_part(node: Node) -> None:
    others = [
        Entry("k", 1000),
        Entry("k", 1000, database="other"),
        Entry("k", 1000, token="tokenid1"),
        Entry("k", 1000, token="tokenid2"),
        Entry("k", 1000, part=1),
        Entry("k2", 1000),
    ]
    assert node.ship("1", others) == [True] * 6
    assert node.ship("2", others) == [False] * 6


def test_other_bodies_under_one_key_are_counted(node: Node) -> None:
    node.ship("1", [Entry("a", 1000, b"\x01")])
    claims = node.window.begin("2")
    later = [
        Entry("a", 1001, b"\xa2xx"),
        Entry("b", 1001, b"\x01"),
        Entry("b", 1001, b"\x01"),
        Entry("b", 1002, b"\x02"),
    ]
    assert claims.decide([entry.record() for entry in later]) == [False, True, False, False]
    assert claims.decide([Entry("b", 1003, b"\xa1x").record()]) == [False]
    assert (claims.repeated, claims.other_bodies, claims.example) == (4, 3, (2, 1))


def test_a_batch_without_keys_leaves_no_file(node: Node) -> None:
    node.window.begin("1").persist()
    node.batches["1"] = ""
    node.finish("1")
    assert not node.folder.exists()


def test_a_batch_of_repeated_keys_keeps_its_horizon(tmp_path: Path) -> None:
    """It claims nothing, and yet a later try must not count what the first one dropped."""
    node = Node(tmp_path, max_keys=3)
    node.ship("1", entries("abc"))
    assert node.attempt("2", entries("a")) == [False]
    node.restart()
    node.ship("3", entries("defgh"))
    node.ship("4", entries("ijkl"))
    assert node.ship("2", entries("a")) == [False]
    node.ship("5", entries("mnop"))
    assert node.ship("6", entries("a")) == [True]  # by now it is beyond the newest three


@pytest.mark.slow
def test_the_newest_keys_are_known_and_others_forgotten(tmp_path: Path) -> None:
    node = Node(tmp_path, HastyDisk(), max_keys=16)
    keys = [chr(0x21 + number) for number in range(80)]
    for number, key in enumerate(keys):
        assert node.ship(str(number), entries(key)) == [True]
        assert node.ship(f"{number}-again", entries("".join(keys[max(0, number - 15) : number + 1]))) == [False] * min(
            16, number + 1
        )
    assert node.block[Uploader.KEYS] <= 16 + 2
    assert node.block[Uploader.KEYS_EXPIRED] == node.block[Uploader.KEYS_CUT] == 80 - node.block[Uploader.KEYS]
    assert len(node.files()) < 16
    assert node.ship("last", entries(keys[0])) == [True]


@pytest.mark.slow
def test_old_keys_expire_and_leave_the_disk(node: Node) -> None:
    for number in range(50):
        node.ship(str(number), [Entry(f"key-{number}", 1000 + 10 * number)])
    assert node.block[Uploader.KEYS] < 25
    assert node.block[Uploader.KEYS_EXPIRED] == 50 - node.block[Uploader.KEYS]
    assert node.block[Uploader.KEYS_CUT] == 0
    assert len(node.files()) < 20


def test_small_files_are_merged_and_survive_a_restart(tmp_path: Path) -> None:
    node = Node(tmp_path, HastyDisk())
    for number in range(64):
        node.ship(str(number), [Entry(f"key-{number}", 1000)])
    assert len(node.files()) <= 7
    node.restart()
    assert node.ship("again", [Entry(f"key-{number}", 1001) for number in range(65)]) == [False] * 64 + [True]


def test_a_merge_that_was_interrupted_is_finished(node: Node) -> None:
    node.ship("1", entries("ab"))
    younger = node.folder / "0000000000000002.keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyWindow, "_remove", lambda self, path: None)
        node.ship("2", entries("cd"))
    assert younger.exists()
    node.restart()
    assert node.files() == ["0000000000000000.keys"]
    assert node.ship("3", entries("abcde")) == [False] * 4 + [True]


def test_claims_go_to_the_batch_that_takes_over(node: Node) -> None:
    assert node.attempt("old", entries("abb")) == [True, True, False]
    node.ship("other", entries("ac"))
    node.batches = {"new": "old"}  # the process ended before it handed them over
    node.restart()
    assert node.files()[1:] == ["new.claims"]
    assert node.ship("new", entries("ab")) == [True, True]


def test_claims_of_a_batch_that_put_nothing_are_forgotten(node: Node) -> None:
    """The segment that could not be read has the entry that counts, and comes with a later batch."""
    node.attempt("old", entries("ab"))
    node.window.forget("old")
    node.batches = {}
    assert node.files() == []
    node.ship("rest", entries("a"))
    assert node.ship("segment", entries("ab")) == [False, True]


def test_claims_without_a_batch_mean_nothing(node: Node) -> None:
    node.attempt("gone", entries("a"))
    node.batches = {}
    node.restart()
    assert node.files() == []
    assert node.ship("again", entries("a")) == [True]


def test_claims_of_a_damaged_batch_wait_for_the_operator(node: Node) -> None:
    node.attempt("damaged", entries("a"))
    del node.batches["damaged"]
    node.restart(kept=("damaged",))
    assert node.files() == ["damaged.claims"]


# Damage


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_folder_that_somebody_moved_away_stops_no_batch(goes_on: bool, node: Node) -> None:
    """What the uploader knows, it writes anew: for the batch under way, and for those after it."""
    node.ship("first", entries("a"))
    node.attempt("second", entries("bc"))
    shutil.rmtree(node.folder)
    if goes_on:
        assert node.attempt("second", entries("bcad")) == [True, True, False, True]
    node.finish("second")
    assert node.ship("third", entries("abcde")) == [False, False, False, not goes_on, True]
    node.restart()
    assert node.ship("fourth", entries("bcex")) == [False, False, False, True]


def test_a_damaged_file_is_kept_and_its_intact_part_used(node: Node) -> None:
    node.attempt("1", entries("ab"))
    claims = node.window.begin("1")
    claims.decide([entry.record() for entry in entries("abcdef")])
    claims.persist()
    node.finish("1")
    (name,) = node.files()
    flip_bit(node.folder / name, -3)  # in the second of two frames
    node.restart()
    assert os.listdir(node.directory.quarantine) == [name]
    assert node.ship("2", entries("abcdef")) == [False, False, True, True, True, True]
    node.restart()
    assert node.ship("3", entries("abcdef")) == [False] * 6


def test_a_file_with_a_damaged_header_goes_to_quarantine(node: Node) -> None:
    node.ship("1", entries("ab"))
    (name,) = node.files()
    flip_bit(node.folder / name, 3)
    node.restart()
    assert (node.files(), os.listdir(node.directory.quarantine)) == ([], [name])
    assert node.ship("2", entries("ab")) == [True, True]


@pytest.mark.parametrize("offset", [3, 90, -3])
def test_damaged_claims_never_stop_their_batch(node: Node, offset: int) -> None:
    node.attempt("1", entries("ab"))
    flip_bit(node.folder / "1.claims", offset)
    node.restart()
    node.ship("other", entries("c"))
    assert node.ship("1", entries("abd")) == [True, True, True]
    node.restart()
    assert node.ship("2", entries("abcd")) == [False] * 4


def test_a_torn_frame_is_written_over(node: Node) -> None:
    node.attempt("1", entries("ab"))
    path = node.folder / "1.claims"
    whole = path.read_bytes()
    claims = node.window.begin("1")
    claims.decide([entry.record() for entry in entries("cd")])
    claims.persist()
    torn = path.read_bytes()[:-1]
    for content in (torn, whole + b"KEYS" + bytes(9), whole + bytes(500)):
        path.write_bytes(content)
        node.restart()
        assert os.listdir(node.directory.quarantine) == []
        assert node.attempt("1", entries("ab")) == [True, True]
    node.finish("1")
    node.restart()
    assert os.listdir(node.directory.quarantine) == []
    assert node.ship("2", entries("abc")) == [False, False, True]


class UnreadableDisk(Disk):
    """A disk that cannot read some names for a while, or is full."""

    def __init__(self) -> None:
        self.suffix = ""
        self.free = -1  # writes that still succeed; -1: all
        self.is_full = False

    def open_for_reading(self, path: str) -> int:
        if self.suffix and path.endswith(self.suffix):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return super().open_for_reading(path)

    def write(self, fd: int, buffers: Any, offset: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(fd, buffers, offset)


def test_an_unreadable_file_stays_and_is_used_later(tmp_path: Path) -> None:
    disk = UnreadableDisk()
    node = Node(tmp_path, disk)
    node.ship("1", entries("ab"))
    disk.suffix = ".keys"
    node.restart()
    assert node.block[Uploader.UNREADABLE_KEY_FILES] == 1
    assert node.ship("2", entries("ac")) == [True, True]  # doubled, which health tells
    assert node.block[Uploader.UNREADABLE_KEY_FILES] == 1
    disk.suffix = ""
    node.ship("3", entries("d"))
    assert node.block[Uploader.UNREADABLE_KEY_FILES] == 0
    assert os.listdir(node.directory.quarantine) == []
    assert node.ship("4", entries("abcd")) == [False] * 4
    node.restart()
    assert node.ship("5", entries("abcd")) == [False] * 4


@pytest.mark.parametrize(("times", "known"), [(2, True), (99, False)])
@pytest.mark.parametrize("is_over", [True, False])
def test_keys_that_cannot_be_read_for_a_moment_are_not_forgotten(
    times: int, known: bool, is_over: bool, tmp_path: Path
) -> None:
    """Neither those of a batch under way nor others. But no batch waits for ever."""
    left = 0

    class Failing(Disk):
        def open_for_reading(self, path: str) -> int:
            nonlocal left
            if path.endswith((".claims", ".keys")) and left:
                left -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().open_for_reading(path)

    node = Node(tmp_path / "wal", Failing())
    node.attempt("first", entries("ab"))
    if is_over:
        node.finish("first")
    left = times
    node.restart()
    if not is_over:
        node.finish("first")
    assert node.ship("second", entries("abc")) == [not known, not known, True]


def test_keys_that_came_while_a_file_was_unreadable_are_no_part_of_it(tmp_path: Path) -> None:
    """Their file's number is after all of its keys: else the next start takes it for one that was merged into it."""
    disk = UnreadableDisk()
    node = Node(tmp_path, disk)
    node.ship("1", entries("abcdefgh"))
    disk.suffix = ".keys"
    node.restart()
    node.ship("2", entries("x"))
    disk.suffix = ""
    node.restart()
    assert node.attempt("3", entries("abcdefghx")) == [False] * 9
    (node.folder / node.files()[-1]).rename(node.folder / f"{1:016d}.keys")  # as earlier versions called it
    node.restart()
    assert node.ship("3", entries("abcdefghx")) == [False] * 9
    node.restart()
    assert node.ship("4", entries("abcdefghx")) == [False] * 9


def test_an_entry_that_is_read_late_counts_if_its_key_was_used_after_the_window(node: Node) -> None:
    """Its segment could not be read for days, and its key is another request by then."""
    assert node.ship("2", [Entry("a", 1000 + 2 * WINDOW)]) == [True]
    late = [Entry("a", 1000), Entry("a", 1000 + WINDOW), Entry("a", 1001 + WINDOW)]
    assert node.attempt("1", late, chunk=1) == [True, False, False]
    node.restart()
    assert node.ship("1", late) == [True, False, False]


def test_a_file_of_another_version_is_left_alone(node: Node) -> None:
    node.ship("1", entries("a"))
    path = node.folder / node.files()[0]
    header = key_files.Header(2, "", 0)
    path.write_bytes(key_files.encode_header(header) + path.read_bytes().partition(b"\n")[2])
    before = path.read_bytes()
    node.restart()
    assert node.block[Uploader.UNREADABLE_KEY_FILES] == 1
    assert node.ship("2", entries("a")) == [True]
    assert path.read_bytes() == before


def test_on_a_full_disk_keys_wait_for_the_end_of_the_batch(tmp_path: Path) -> None:
    disk = UnreadableDisk()
    node = Node(tmp_path, disk)
    claims = node.window.begin("1")
    claims.decide([entry.record() for entry in entries("ab")])
    disk.is_full = True
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            claims.persist()
    claims.persist()  # the batch goes on, as only its end frees the disk
    with pytest.raises(OSError, match="No space"):
        node.window.finish("1")
    disk.is_full = False
    node.window.finish("1")
    node.restart()
    assert node.ship("2", entries("abc")) == [False, False, True]


# Searching


@pytest.fixture
def alike() -> np.ndarray[Any, Any]:
    """Keys that share the upper half of their hashes."""
    records = np.zeros(5, RECORD)
    records["high"] = [7, 7, 7, 3, 7]
    records["low"] = [1, 2, 3, 1, 2]
    records["second"] = [10, 11, 12, 13, 14]
    return records


def test_keys_that_share_half_of_their_hash_are_told_apart(alike: np.ndarray[Any, Any]) -> None:
    run = Run.of(alike)
    assert len(run.high) == 5  # of the two equal keys, both stay
    assert len(Run.together([run, Run.of(alike[:2])]).high) == 5
    wanted = np.zeros(5, RECORD)
    wanted["high"] = [7, 7, 7, 7, 9]
    wanted["low"] = [3, 2, 4, 1, 1]
    wanted["second"] = [12, 14, 14, 12, 14]

    def seconds(window: int) -> list[int]:
        places = run.find(wanted, window)
        return [int(run.rest["second"][place]) if place >= 0 else -1 for place in places]

    assert seconds(-1) == [12, 11, -1, 10, -1]
    assert seconds(2) == [12, 14, -1, 10, -1]
    assert seconds(1) == [12, 14, -1, -1, -1]
    assert run.holds(wanted).tolist() == [True, True, False, False, False]


def test_a_batch_that_waits_for_ever_does_not_keep_all_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It waits for a segment that cannot be read, perhaps for weeks: its keys must not fill memory and disk."""
    node = Node(tmp_path / "wal", max_keys=100, waiting_keys=100)
    first = [Entry(f"first {number}", 1000) for number in range(60)]
    node.ship("a", first)
    assert node.attempt("waits", [Entry("waits", 1000), first[0]]) == [True, False]
    known = []
    for number in range(20):
        node.ship(f"b{number}", [Entry(f"{number} {key}", 1000 + 40 * number) for key in range(60)])
        known.append(node.block[Uploader.KEYS])
    assert max(known) <= 2 * 100 + 60 + 1
    assert known[-1] > 100
    assert caplog.text.count("idempotency keys are forgotten although a batch waits that may look at them") == 1
    assert node.attempt("waits", [Entry("waits", 1000)]) == [True]  # what it has claimed is its own
    node.restart()
    assert node.attempt("waits", [Entry("waits", 1000)]) == [True]


@pytest.mark.slow
def test_a_batch_begins_while_the_one_before_ends_in_a_thread(tmp_path: Path) -> None:
    """The uploader converts ahead: it must find the keys of that one, as claims or in the window, at any moment."""
    node = Node(tmp_path / "wal", HastyDisk(), max_keys=40)
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            for number in range(150):
                batch, key = str(number), [Entry(f"key {number}", 1000)]
                assert node.attempt(batch, key) == [True]
                ending = pool.submit(node.window.finish, batch)
                tries = 0
                while not tries or not ending.done():
                    tries += 1
                    ahead = f"ahead-{number}-{tries}"
                    assert node.window.begin(ahead).decide([key[0].record()]) == [False]
                    node.window.forget(ahead)
                ending.result()
    finally:
        sys.setswitchinterval(switching)


def test_claims_that_were_read_are_durable_before_they_get_their_last_name(tmp_path: Path) -> None:
    """Who wrote them may have died before its sync: they were in the page cache only."""
    disk = FaultyDisk()
    node = Node(tmp_path / "wal", disk)
    node.attempt("a", entries("abc"))
    node.restart()
    disk.calls.clear()
    assert node.attempt("a", entries("abc")) == [True] * 3
    node.finish("a")
    synced, renamed = disk.calls.index(("fsync", "a.claims")), disk.calls.index(("rename", "a.claims"))
    assert synced < renamed
