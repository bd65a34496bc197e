"""The spool keeps what was accepted over a crash at any byte, and never hides what is damaged."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client import Options, SpoolError, spool_file
from arcpipe.client.batches import Batch
from arcpipe.client.buffer import Buffer
from arcpipe.client.delivery import Message
from arcpipe.client.encoding import Part, Stream
from arcpipe.client.errors import Refusal, SpoolBusy
from arcpipe.client.spool import Spool
from arcpipe.disk import Buffer as Bytes
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.units import MB

STREAM = Stream("lines", "default", "ns")
parts_of_files = st.lists(st.binary(min_size=1, max_size=40).map(lambda data: Part(data, 1)), max_size=8)


def written(parts: Sequence[Part], is_sealed: bool = False) -> bytes:
    data = spool_file.start_of_file(STREAM) + b"".join(spool_file.frame(b"P", p.data, p.records) for p in parts)
    return data + spool_file.seal(len(parts), len(data)) if is_sealed else data


def fill(spool: Spool, *texts: bytes) -> Batch:
    batch = spool.new(STREAM)
    for text in texts:
        batch.add(Part(text, 1))
    return batch


def sealed(batch: Batch) -> Message:
    message = batch.seal()
    assert message is not None
    return message


def found(spool: Spool) -> list[Message]:
    """Return what of the leftover can be sent."""
    return [message for batch in spool.leftover() if (message := batch.seal()) is not None]


# The format


@given(parts_of_files, st.booleans())
def test_a_file_holds_what_was_written(parts: list[Part], is_sealed: bool) -> None:
    content = spool_file.read(written(parts, is_sealed))
    assert (content.stream, content.parts, content.is_sealed, content.torn) == (STREAM, parts, is_sealed, 0)


@given(parts_of_files, st.data())
def test_a_file_that_a_crash_cut_has_its_whole_parts(parts: list[Part], data: st.DataObject) -> None:
    start = len(spool_file.start_of_file(STREAM))
    whole = written(parts)
    size = data.draw(st.integers(start, len(whole)))
    content = spool_file.read(whole[:size])
    assert content.parts == parts[: len(content.parts)]
    assert content.size + content.torn == size
    assert not content.is_sealed
    following = parts[len(content.parts) : len(content.parts) + 1]
    assert all(content.torn < len(spool_file.frame(b"P", part.data, 1)) for part in following)


@given(parts_of_files, st.data())
def test_a_complete_file_with_another_byte_never_loses_a_part_in_silence(
    parts: list[Part], data: st.DataObject
) -> None:
    whole = bytearray(written(parts, is_sealed=True))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        content = spool_file.read(bytes(whole))
    except (DamagedFile, UnknownVersion):
        return
    assert content.parts == parts  # it is in the seal


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_are_refused(data: bytes) -> None:
    for candidate in (data, spool_file.MAGIC + data):
        try:
            content = spool_file.read(candidate)
        except (DamagedFile, UnknownVersion):
            continue
        assert content.size + content.torn == len(candidate)


# The directory


def test_what_was_accepted_is_sent_after_a_crash_with_the_same_key_and_bytes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch")
    first = sealed(fill(spool, b"a", b"b"))
    fill(spool, b"c")  # still open
    spool.close()
    spool = Spool(tmp_path, MB, "batch")
    there = found(spool)
    assert there[0] == first
    assert (there[1].body, there[1].records, there[1].stream) == (b"c", 1, STREAM)
    spool.close()
    spool = Spool(tmp_path, MB, "batch")  # and once more
    assert found(spool) == there
    for batch in spool.leftover():
        batch.accepted()
    assert spool.leftover() == []
    spool.close()


@pytest.mark.parametrize("size", [0, 1, 8, 12])
def test_a_file_that_a_crash_left_without_its_beginning_is_no_damage(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The crash came between the creation of the file and its first write: no record was accepted."""
    (tmp_path / "k-1.batch").write_bytes(written([])[:size])
    spool = Spool(tmp_path, MB, "batch")
    assert (found(spool), spool.damaged) == ([], 0)
    assert os.listdir(tmp_path) == []
    assert "holds nothing, as a crash came before its first record" in caplog.text
    spool.close()


@given(st.integers(1, 3), st.integers(0, 120))
def test_a_torn_file_is_sent_as_it_was_first_cut(records: int, cut: int) -> None:
    """The second crash must find the bytes that the first restart sent."""
    with TemporaryDirectory() as directory:
        spool = Spool(directory, MB, "never")
        fill(spool, *[b"record %d" % number for number in range(records)])
        spool.close()
        [name] = [name for name in os.listdir(directory) if name.endswith(".batch")]
        path = Path(directory) / name
        whole = path.read_bytes()
        start = len(spool_file.start_of_file(STREAM))
        path.write_bytes(whole[: start + cut] if start + cut < len(whole) else whole + b"P\0\0")
        spool = Spool(directory, MB, "never")
        first = found(spool)
        spool.close()
        spool = Spool(directory, MB, "never")
        assert found(spool) == first
        spool.close()


def test_a_torn_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k-1.batch").write_bytes(written([Part(b"whole", 1)]) + b"P\x01")
    spool = Spool(tmp_path, MB, "batch")
    assert [message.body for message in found(spool)] == [b"whole"]
    assert "the last 2 bytes of" in caplog.text
    spool.close()


def test_a_damaged_file_is_put_aside_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(written([Part(b"one", 1), Part(b"two", 1)], is_sealed=True))
    data[data.index(b"one")] ^= 1
    (tmp_path / "k-1.batch").write_bytes(data)
    (tmp_path / "k-2.batch").write_bytes(b"no spool file")
    (tmp_path / "k-3.batch").write_bytes(written([Part(b"good", 1)], is_sealed=True))
    spool = Spool(tmp_path, MB, "batch")
    assert [message.body for message in found(spool)] == [b"good"]
    assert sorted(os.listdir(tmp_path / "damaged")) == ["k-1.batch", "k-2.batch"]
    assert (tmp_path / "damaged" / "k-1.batch").read_bytes() == data
    assert caplog.text.count("cannot be read, and is not sent") == spool.damaged == 2
    spool.close()


def test_a_file_of_a_newer_version_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k-1.batch").write_bytes(b"arcspl2\nwhatever")
    spool = Spool(tmp_path, MB, "batch")
    assert found(spool) == []
    assert (tmp_path / "k-1.batch").exists()
    assert "stays as it is" in caplog.text
    spool.close()


def test_damage_between_seal_and_send_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k-1.batch").write_bytes(written([Part(b"one", 1)], is_sealed=True))
    spool = Spool(tmp_path, MB, "batch")
    [batch] = spool.leftover()
    (tmp_path / "k-1.batch").write_bytes(b"x")
    assert batch.seal() is None
    assert "cannot be read, and is not sent" in caplog.text
    assert (tmp_path / "damaged" / "k-1.batch").exists()
    spool.close()


def test_two_clients_cannot_have_one_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch")
    with pytest.raises(SpoolError, match="is in use by another client"):
        Spool(tmp_path, MB, "batch")
    spool.close()
    Spool(tmp_path, MB, "batch").close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match="cannot be used"):
        Spool(tmp_path / "file" / "spool", MB, "batch")


def test_a_refused_batch_is_kept_with_its_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch")
    batch = fill(spool, b"a")
    message = sealed(batch)
    batch.refused(Refusal(message.key, "default", "lines", 1, 400, "bad line", False, message.body))
    assert (tmp_path / "refused" / f"{message.key}.batch").exists()
    assert "400 bad line" in (tmp_path / "refused" / f"{message.key}.txt").read_text()
    assert spool.leftover() == []
    spool.close()


def test_a_batch_that_is_refused_again_has_the_newest_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch")
    message = sealed(fill(spool, b"bad"))
    [batch] = spool.leftover()
    batch.refused(Refusal(message.key, "default", "lines", 1, 401, "no token", False, message.body))
    (tmp_path / "refused" / f"{message.key}.batch").rename(tmp_path / f"{message.key}.batch")
    [batch] = spool.leftover()
    batch.refused(Refusal(message.key, "default", "lines", 1, 400, "bad line", False, message.body))
    assert "400 bad line" in (tmp_path / "refused" / f"{message.key}.txt").read_text()
    spool.close()


@pytest.mark.parametrize("name", ["日本", "k 1", "k" * 129])
def test_a_file_whose_name_is_no_key_stays(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Such a request could not even be written, and would be tried for ever."""
    path = tmp_path / f"{name}.batch"
    path.write_bytes(written([Part(b"one", 1)], is_sealed=True))
    spool = Spool(tmp_path, MB, "batch")
    assert (spool.leftover(), spool.damaged, path.exists()) == ([], 1, True)
    assert "its name was changed" in caplog.text
    spool.close()


def test_only_what_was_sealed_may_have_been_sent_before(tmp_path: Path) -> None:
    (tmp_path / "k-1.batch").write_bytes(written([Part(b"one", 1)], is_sealed=True))
    (tmp_path / "k-2.batch").write_bytes(written([Part(b"two", 1)]))
    spool = Spool(tmp_path, MB, "batch")
    for batch, may_be_sent in zip(spool.leftover(), (True, False), strict=True):
        sealed(batch)
        assert batch.may_be_sent == may_be_sent
    spool.close()


def test_a_spool_that_is_closed_twice_closes_nobody_else_s_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch")
    spool.close()
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]  # one has the number of the lock now
    spool.close()
    for fd in fds:
        os.close(fd)


# Disks that fail


class FailingDisk(Disk):
    """Fails the calls that `fails` names, by name and number of the call."""

    def __init__(self, fails: Callable[[str], bool], error: int = errno.ENOSPC) -> None:
        self._fails = fails
        self._error = error
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self._fails(name):
            raise OSError(self._error, os.strerror(self._error))

    def write(self, fd: int, buffers: Sequence[Bytes], offset: int) -> None:
        if self._fails("short write"):
            super().write(fd, [bytes(buffers[0])[: len(buffers[0]) // 2]], offset)
            raise OSError(self._error, os.strerror(self._error))
        self._call("write")
        super().write(fd, buffers, offset)

    def create(self, path: str) -> int:
        self._call("create")
        return super().create(path)

    def truncate(self, fd: int, size: int) -> None:
        self._call("truncate")
        super().truncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")
        super().fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        self._call("sync_directory")
        super().sync_directory(path)

    def unlink(self, path: str) -> None:
        self._call("unlink")
        super().unlink(path)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._call("read")
        return super().read(fd, length, offset)


@pytest.mark.parametrize("also", [(), ("truncate",)])
@pytest.mark.parametrize("call", ["write", "short write", "fdatasync"])
def test_a_record_that_the_disk_refused_is_not_accepted(tmp_path: Path, call: str, also: tuple[str, ...]) -> None:
    failing: set[str] = set()
    spool = Spool(tmp_path, MB, "always", FailingDisk(lambda name: name in failing))
    batch = fill(spool, b"good")
    failing |= {call, *also}
    with pytest.raises(SpoolError, match="cannot be written"):
        batch.add(Part(b"refused", 1))
    failing.discard(call)  # what cannot be cut off still cannot
    assert sealed(batch).body == b"good"
    spool.close()


def test_batches_that_wait_hold_no_file_open(tmp_path: Path) -> None:
    """In an outage there are thousands of them, and a process may often open 1024 files."""
    spool = Spool(tmp_path, MB, "batch")
    buffer = Buffer(Options(batch_records=2), spool)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(60):
        assert buffer.try_put(STREAM, Part(b"%d\n" % number, 1))
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list(tmp_path.glob("*.batch"))) == 30
    bodies: list[bytes] = []
    while len(bodies) < 30:
        taken = buffer.take()
        assert taken is not None
        bodies.append(sealed(taken.batch).body)
        taken.batch.accepted()
        buffer.finish(taken)
    assert b"".join(bodies).split() == [b"%d" % number for number in range(60)]
    assert list(tmp_path.glob("*.batch")) == []
    spool.close()


def test_a_full_disk_leaves_no_file_open(tmp_path: Path) -> None:
    """Each call of a program that goes on begins a batch, and cannot write its first record."""
    calls = iter([False, True] * 20)
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name == "write" and next(calls)))
    buffer = Buffer(Options(), spool)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(SpoolError, match="cannot be written"):
            buffer.try_put(STREAM, Part(b"x", 1))
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.glob("*.batch")) == []
    assert buffer.waiting() == (0, 0)
    spool.close()


def test_a_batch_that_cannot_be_begun_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name == "short write"))
    with pytest.raises(SpoolError, match="cannot be written"):
        spool.new(STREAM)
    assert list(tmp_path.glob("*.batch")) == []
    spool.close()


def test_a_full_disk_at_the_seal_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing: set[str] = set()
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name in failing))
    batch = fill(spool, b"a", b"b")
    failing.add("short write")
    first = sealed(batch)
    assert first.body == b"a\nb"
    assert "cannot be written or synced" in caplog.text
    failing.clear()
    assert found(spool) == [first]
    spool.close()


def test_a_file_that_cannot_be_read_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k-1.batch").write_bytes(written([Part(b"one", 1)], is_sealed=True))
    failing = {"read"}
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name in failing, errno.EIO))
    assert found(spool) == []
    assert "cannot be read, and stays" in caplog.text
    failing.clear()
    assert [message.body for message in found(spool)] == [b"one"]
    spool.close()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_batch_is_read_later_if_the_system_is_short_of_something(tmp_path: Path, error: int) -> None:
    failing = {"read"}
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name in failing, error))
    batch = fill(spool, b"a")
    for _ in range(3):
        with pytest.raises(SpoolBusy, match="cannot be read yet"):
            batch.seal()
    failing.clear()
    assert (sealed(batch).body, spool.damaged) == (b"a", 0)
    spool.close()


def test_a_batch_that_cannot_be_read_at_its_turn_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing: set[str] = set()
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name in failing, errno.EIO))
    batch = fill(spool, b"a")
    failing.add("read")
    assert batch.seal() is None
    assert "cannot be read, and stays" in caplog.text
    failing.clear()
    assert [message.body for message in found(spool)] == [b"a"]
    spool.close()


def test_a_file_that_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, MB, "batch", FailingDisk(lambda name: name == "unlink", errno.EROFS))
    batch = fill(spool, b"a")
    sealed(batch)
    with caplog.at_level(logging.WARNING):
        batch.accepted()
    assert "the next start sends it again under the same key" in caplog.text
    spool.close()


@pytest.mark.parametrize(
    ("sync", "while_open", "at_seal"), [("always", 3, 1), ("batch", 0, 1), ("never", 0, 0)], ids=str
)
def test_each_policy_syncs_what_it_says(tmp_path: Path, sync: Any, while_open: int, at_seal: int) -> None:
    disk = FailingDisk(lambda name: False)
    spool = Spool(tmp_path, MB, sync, disk)
    batch = fill(spool, b"a", b"b", b"c")
    assert disk.calls.count("fdatasync") == while_open
    disk.calls.clear()
    batch.seal()
    assert disk.calls.count("fdatasync") == disk.calls.count("sync_directory") == at_seal
    spool.close()
