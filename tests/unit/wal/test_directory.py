"""The log directory: its lock, its identity, its listings."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arcpipe.disk import Disk
from arcpipe.errors import InstanceLocked, UnknownVersion, WALError
from arcpipe.wal import lock as lock_module
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, NodeIdentity, SegmentName, WALDirectory, parse_filename

ROOT = Path(__file__).parents[3]


@pytest.fixture
def directory(tmp_path: Path) -> WALDirectory:
    made = WALDirectory(tmp_path / "wal")
    made.make()
    return made


def touch(directory: WALDirectory, *names: str) -> None:
    for name in names:
        Path(directory.path, name).write_bytes(b"x")


# Names


@pytest.mark.parametrize(
    ("filename", "name", "state"),
    [
        ("worker-1-20251008_143000-000001.wal", SegmentName(1, "20251008_143000", 1), ACTIVE),
        ("worker-12-20251008_143000-1234567.wal.sealed", SegmentName(12, "20251008_143000", 1234567), SEALED),
        ("worker-3-20251008_143000.wal", SegmentName(3, "20251008_143000", 0), ACTIVE),
        ("worker-3-20251008_143000.wal.recovered", SegmentName(3, "20251008_143000", 0), RECOVERED),
    ],
)
def test_a_segments_name_tells_slot_second_number_and_state(filename: str, name: SegmentName, state: str) -> None:
    assert parse_filename(filename) == (name, state)
    assert f"{name}{state}" == filename


@pytest.mark.parametrize(
    "filename",
    ["", "LOCK", "node.json", "worker-1-20251008_143000-000001.wal.tmp", "worker-1-2025.wal", "x.wal", "worker--1.wal"],
)
def test_other_names_are_no_segments(filename: str) -> None:
    assert parse_filename(filename) is None


def test_the_second_in_a_name_is_utc() -> None:
    name = SegmentName.at(2, 1_759_933_800_999_999, 7)
    assert str(name) == "worker-2-20251008_143000-000007"
    assert name.created_us == 1_759_933_800_000_000
    assert SegmentName(1, "20259999_999999", 1).created_us == 0


# Making and listing


def test_making_it_syncs_every_directory_on_the_way(tmp_path: Path) -> None:
    synced: list[str] = []

    class Recording(Disk):
        def sync_directory(self, path: str) -> None:
            super().sync_directory(path)
            synced.append(os.path.relpath(path, tmp_path))

    directory = WALDirectory(tmp_path / "a" / "b" / "wal", Recording())
    directory.make()
    assert {".", "a", "a/b", "a/b/wal"} <= set(synced)
    synced.clear()
    directory.make()
    assert synced == []
    os.rmdir(directory.free)
    directory.make()
    assert synced == ["a/b/wal"]


def test_listings_are_by_state_and_slot_and_oldest_first(directory: WALDirectory) -> None:
    touch(
        directory,
        "worker-1-20251008_143001-000003.wal",
        "worker-1-20251008_143000-000002.wal",
        "worker-2-20251008_143000-000001.wal",
        "worker-1-20251008_143000-000001.wal.sealed",
        "note.txt",
        "LOCK",
    )
    found = [file.filename for file in directory.segments(ACTIVE)]
    assert found == [
        "worker-1-20251008_143000-000002.wal",
        "worker-2-20251008_143000-000001.wal",
        "worker-1-20251008_143001-000003.wal",
    ]
    assert [file.filename for file in directory.segments(ACTIVE, slot=2)] == found[1:2]
    [sealed] = directory.segments(SEALED)
    assert (sealed.size, sealed.name.seq, sealed.state) == (1, 1, SEALED)
    assert directory.segments(RECOVERED) == []


def test_a_slot_has_segments_by_state_and_none_of_another_slot(directory: WALDirectory) -> None:
    for name in ("worker-1-20251008_143000-000001.wal", "worker-11-20251008_143000-000001.wal.sealed"):
        Path(directory.path, name).write_bytes(b"")
    found = {(slot, state): directory.has_segments(state, slot) for slot in (1, 2, 11) for state in (ACTIVE, SEALED)}
    assert [key for key, there in found.items() if there] == [(1, ACTIVE), (11, SEALED)]


def test_the_highest_number_counts_all_states_and_manifests(directory: WALDirectory) -> None:
    assert directory.highest_seq(1) == 0
    touch(
        directory,
        "worker-1-20251008_143000-000002.wal",
        "worker-1-20251008_143000-000005.wal.recovered",
        "worker-1-20251008_143000-000004.wal.sealed",
        "worker-2-20251008_143000-000077.wal.sealed",
    )
    assert directory.highest_seq(1) == 5
    manifest = b'{"batch_id":"x","segments":["worker-1-20251008_143000-000009.wal.sealed"],"note":"\xff"}'
    Path(directory.batches, "x.json").write_bytes(manifest)
    assert directory.highest_seq(1) == 9
    assert directory.highest_seq(2) == 77
    assert directory.highest_seq(3) == 0


def test_manifests_that_come_and_go_meanwhile_are_no_error(directory: WALDirectory) -> None:
    """The uploader finishes batches while a worker that died is replaced."""
    stop = threading.Event()

    def finish_batches() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            temporary = Path(directory.batches, f"{number}.json.tmp")
            temporary.write_bytes(b'{"segments":["worker-1-20251008_143000-000009.wal.sealed"]}')
            target = temporary.with_suffix("")
            temporary.rename(target)
            target.unlink()

    thread = threading.Thread(target=finish_batches)
    thread.start()
    try:
        touch(directory, "worker-1-20251008_143000-000003.wal")
        assert {directory.highest_seq(1) for _ in range(3000)} <= {3, 9}
    finally:
        stop.set()
        thread.join()


# Identity


def test_a_node_keeps_its_id_and_counts_its_starts(directory: WALDirectory) -> None:
    first = directory.next_boot()
    assert len(first.node) == 12
    assert [directory.next_boot() for _ in range(2)] == [NodeIdentity(first.node, 2), NodeIdentity(first.node, 3)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"node": 5, "boot": 1}',
        b'{"node": "\xff", "boot": 1}',
        b'{"node": "", "boot": 1}',
        b'{"node": "0123456789ab", "boot": -7}',
        b'{"node": "0123456789ab", "boot": 99999999999999999999}',
        bytes(50),
    ],
)
def test_a_damaged_identity_stops_the_start_and_is_not_touched(directory: WALDirectory, content: bytes) -> None:
    path = Path(directory.path, "node.json")
    path.write_bytes(content)
    with pytest.raises(WALError, match=r"node\.json is damaged: .*\. Restore it, or move it away"):
        directory.next_boot()
    assert path.read_bytes() == content


def test_no_identity_is_made_of_one_that_was_cut_off(directory: WALDirectory) -> None:
    node = directory.next_boot()
    path = Path(directory.path, "node.json")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WALError, match="is damaged"):
            directory.next_boot()
    path.write_bytes(whole)
    assert directory.next_boot() == NodeIdentity(node.node, 2)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("call", ["open_for_reading", "read"])
def test_an_identity_that_cannot_be_read_stops_the_start(directory: WALDirectory, number: int, call: str) -> None:
    """An identity that cannot be read stops the start, and is not touched."""
    node = directory.next_boot()
    path = Path(directory.path, "node.json")
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory.disk, call, fails)
        with pytest.raises(WALError, match=rf"node\.json cannot be read: {os.strerror(number)}\. It says who"):
            directory.next_boot()
    assert path.read_bytes() == before
    assert directory.next_boot() == NodeIdentity(node.node, 2)


def test_a_directory_in_the_place_of_an_identity_is_no_missing_one(directory: WALDirectory) -> None:
    Path(directory.path, "node.json").mkdir()
    with pytest.raises(WALError, match="cannot be read: Is a directory"):
        directory.next_boot()


def test_an_identity_of_a_newer_version_is_refused_and_not_touched(directory: WALDirectory) -> None:
    path = Path(directory.path, "node.json")
    content = b'{"node":"0123456789ab","boot":3,"version":2,"ring":7}'
    path.write_bytes(content)
    with pytest.raises(UnknownVersion, match=r"node\.json has version 2, and this arcpipe knows version 1"):
        directory.next_boot()
    assert path.read_bytes() == content


def test_fields_of_another_program_stay_in_the_identity(directory: WALDirectory) -> None:
    path = Path(directory.path, "node.json")
    path.write_bytes(b'{"ring":[7],"node":"0123456789ab","boot":3,"version":1}')
    assert directory.next_boot() == NodeIdentity("0123456789ab", 4)
    assert json.loads(path.read_bytes()) == {"ring": [7], "node": "0123456789ab", "boot": 4, "version": 1}


def test_a_start_is_counted_on_the_disk_before_it_is_told(directory: WALDirectory) -> None:
    """A counter that is told and then lost would be told twice."""
    node = directory.next_boot()

    def fails(_: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory.disk, "sync_directory", fails)
        with pytest.raises(OSError, match="Input/output error"):
            directory.next_boot()
    assert directory.next_boot().boot > node.boot


@pytest.mark.parametrize("left", ["worker-1-20251008_143000-000001.wal.sealed", "batches/x.json"])
def test_a_lost_identity_beside_files_of_a_former_one_is_told(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    directory.next_boot()
    assert caplog.records == []
    Path(directory.path, "node.json").unlink()
    touch(directory, left)
    node = directory.next_boot()
    assert node.boot == 1
    assert f"this node is {node.node} from now on" in caplog.text
    caplog.clear()
    directory.next_boot()
    assert caplog.records == []


def test_the_first_start_syncs_what_one_that_was_killed_may_not_have(tmp_path: Path) -> None:
    synced: list[str] = []

    class Recording(Disk):
        def sync_directory(self, path: str) -> None:
            super().sync_directory(path)
            synced.append(path)

    path = tmp_path / "a" / "wal"
    WALDirectory(path).make()
    directory = WALDirectory(path, Recording())
    directory.make()
    directory.next_boot()
    assert {str(tmp_path / "a"), str(tmp_path), str(path)} <= set(synced)
    synced.clear()
    directory.next_boot()
    assert synced == [str(path)]


# The lock


def test_a_second_instance_is_refused_with_the_pid_of_the_first(directory: WALDirectory) -> None:
    directory.lock()
    with pytest.raises(InstanceLocked, match=f"pid {os.getpid()}"):
        WALDirectory(directory.path).lock(0.0)
    directory.unlock()
    other = WALDirectory(directory.path)
    other.lock(0.0)
    other.unlock()


def test_a_lock_file_on_a_full_disk_locks_without_a_pid(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        directory.lock()
    with pytest.raises(InstanceLocked, match="pid unknown"):
        WALDirectory(directory.path).lock(0.0)
    directory.unlock()


def test_a_shorter_pid_takes_the_whole_place_of_a_longer_one(directory: WALDirectory) -> None:
    Path(directory.path, "LOCK").write_text("99999999999\n")
    directory.lock()
    assert Path(directory.path, "LOCK").read_text() == f"{os.getpid()}\n"
    directory.unlock()


@pytest.mark.parametrize("removed", ["LOCK", "LOCK and all else"])
def test_who_removes_the_lock_file_lets_nobody_in(directory: WALDirectory, removed: str) -> None:
    directory.lock()
    for path in Path(directory.path).iterdir() if removed != "LOCK" else [Path(directory.path, "LOCK")]:
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(InstanceLocked, match="in use by another arcpipe"):
        WALDirectory(directory.path).lock(0.0)
    assert not Path(directory.path, "LOCK").exists()  # who is refused leaves nothing that the owner must look into
    directory.unlock()


def lock_of_an_older_version(directory: WALDirectory) -> int:
    """Takes LOCK alone, as the first versions do."""
    fd = os.open(os.path.join(directory.path, "LOCK"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def test_a_version_that_locks_only_the_file_keeps_us_out_and_is_kept_out(directory: WALDirectory) -> None:
    older = lock_of_an_older_version(directory)
    with pytest.raises(InstanceLocked):
        directory.lock(0.0)
    assert directory.lock_fds == ()
    os.close(older)
    directory.lock(0.0)
    with pytest.raises(BlockingIOError):
        lock_of_an_older_version(directory)
    directory.unlock()


def test_a_removed_lock_file_is_made_again_and_locked(directory: WALDirectory) -> None:
    directory.lock()
    path = Path(directory.path, "LOCK")
    before = path.stat().st_ino
    directory.keep_lock()
    assert path.stat().st_ino == before
    path.unlink()
    directory.keep_lock()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(BlockingIOError):
        lock_of_an_older_version(directory)
    directory.unlock()


def test_a_lock_that_an_older_version_got_is_taken_once_that_is_gone(
    directory: WALDirectory,
) -> None:
    """A lock that an older version got meanwhile is told and taken once that is gone."""
    directory.lock()
    Path(directory.path, "LOCK").unlink()
    older = lock_of_an_older_version(directory)
    for _ in range(2):
        with pytest.raises(InstanceLocked):
            directory.keep_lock()
    os.close(older)
    directory.keep_lock()
    with pytest.raises(BlockingIOError):
        lock_of_an_older_version(directory)
    directory.unlock()


def test_a_directory_that_was_made_again_is_locked_again(directory: WALDirectory, tmp_path: Path) -> None:
    directory.lock()
    Path(directory.path).rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        directory.keep_lock()
    directory.make()
    directory.keep_lock()
    with pytest.raises(InstanceLocked):
        WALDirectory(directory.path).lock(0.0)
    moved = WALDirectory(tmp_path / "moved")
    moved.lock(0.0)  # nobody uses that one any more
    moved.unlock()
    directory.unlock()


@pytest.mark.parametrize("handed_over", [0, 1, 2])
def test_a_handed_over_lock_is_taken_whole_and_nothing_is_left_open(directory: WALDirectory, handed_over: int) -> None:
    """0: LOCK was removed, so neither is of use. 1: by a version that knows only the file. 2: by this one."""
    before = set(os.listdir("/proc/self/fd"))
    former = WALDirectory(directory.path)
    former.lock()
    inherited = [os.dup(fd) for fd in former.lock_fds[: handed_over or 2]]
    if handed_over == 1:
        assert os.path.samestat(os.fstat(inherited[0]), os.stat(os.path.join(directory.path, "LOCK")))
    if handed_over == 0:
        Path(directory.path, "LOCK").unlink()
    former.unlock()
    directory.lock(0.0, inherited)
    with pytest.raises(InstanceLocked):
        WALDirectory(directory.path).lock(0.0)
    with pytest.raises(BlockingIOError):
        lock_of_an_older_version(directory)
    directory.unlock()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOLCK])
def test_where_directories_cannot_be_locked_the_file_is_and_it_is_said(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(directory.path)):
            raise OSError(number, os.strerror(number))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING):
        directory.lock()
        directory.keep_lock()
    assert caplog.text.count("cannot lock directories") == 1
    with pytest.raises(InstanceLocked):
        WALDirectory(directory.path).lock(0.0)
    assert len(directory.lock_fds) == 1
    directory.unlock()


def test_the_lock_is_held_until_the_last_process_that_had_it_is_gone(directory: WALDirectory) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, signal\n"
            "from arcpipe.wal.directory import WALDirectory\n"
            f"WALDirectory({directory.path!r}).lock()\n"
            "child = os.fork()\n"
            "if child: print(child, flush=True)\n"
            "signal.pause()\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    child = 0
    try:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        holder.kill()
        holder.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lock_module, "_DYING_SECONDS", 0.0)
            with pytest.raises(InstanceLocked):
                directory.lock(0.0)
        # Waits for the moments in which the children of a killed instance are going away.
        killer = threading.Timer(0.2, os.kill, (child, signal.SIGKILL))
        killer.start()
        directory.lock(0.0)
        killer.join()
        directory.unlock()
    finally:
        holder.kill()
        holder.wait()
        if child:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
