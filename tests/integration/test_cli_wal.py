"""`arcpipe wal …` as a user calls it: on files that the real writer made, damaged by hand."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from typer.testing import CliRunner

from arcpipe.cli.wal import app
from arcpipe.disk import Disk
from arcpipe.errors import WALError
from arcpipe.wal import WALReader, WALWriter, reader
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import identity_of, is_identity_of
from arcpipe.wal.inspect import entries_of, salvage
from arcpipe.wal.replay import finish_interrupted, replay, replay_sources
from arcpipe.wal.verdict import ScanVerdict
from tests.support import preloaded
from tests.support.program import ROOT, environment
from tests.support.wal_doubles import BadBlocks
from tests.support.wal_files import DAY, IDENTITY, NAME, columnar, end, segment


def run(*arguments: str | Path, code: int = 0, cwd: Path | None = None, **variables: str) -> str:
    """The standard output of `arcpipe wal …`; asserts its exit code."""
    done = preloaded.run("wal", *map(str, arguments), directory=cwd, environ=environment() | variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def write_segment(directory: Path, count: int = 5) -> Path:
    """One completed segment with `count` entries of two records each; its path."""
    writer = WALWriter(str(directory), slot=1)
    for index in range(count):
        writer.append(
            [
                {"measurement": "cpu", "time": 1_700_000_000 + index, "usage": index / 2},
                {"measurement": "mem", "_database": "other", "used": index},
            ]
        )
    writer.close()
    [sealed] = directory.glob("*.sealed")
    return sealed


def write_arc_file(path: Path, records: int) -> None:
    """A file as Arc writes it: no start entry, payloads are arrays of row maps."""
    content = struct.pack(">4sHB", b"ARCW", 1, 1)
    for index in range(records):
        payload = msgpack.packb([{"measurement": "cpu", "_database": "arc", "time": 1_700_000_000 + index, "v": index}])
        content += struct.pack(">IQI", len(payload), 1_700_000_000_000_000 + index, zlib.crc32(payload)) + payload
    path.write_bytes(content)


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    return tmp_path / "wal"


def test_ls_tells_state_entries_records_and_bytes(wal: Path) -> None:
    segment = write_segment(wal)
    [row] = map(json.loads, run("ls", "--json", wal).splitlines())
    assert row["segment"] == segment.name.partition(".")[0]
    assert (row["state"], row["entries"], row["records"], row["damaged"]) == ("sealed", 10, 10, 0)
    assert 0 < row["bytes"] <= segment.stat().st_size
    table = run("ls", wal)
    assert "state" in table.splitlines()[0]
    assert "sealed" in table.splitlines()[1]


def test_ls_of_a_directory_without_segments_says_so(tmp_path: Path) -> None:
    assert "no segments" in run("ls", tmp_path)


def test_a_missing_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert "there is no" in run("ls", tmp_path / "nowhere", code=1)


def test_cat_prints_every_record_as_json(wal: Path) -> None:
    segment = write_segment(wal)
    records = [json.loads(line) for line in run("cat", "--json", segment).splitlines()]
    assert len(records) == 10
    assert records[0] == {"measurement": "cpu", "_database": "default", "time": 1_700_000_000, "usage": 0.0}
    assert {record["_database"] for record in records} == {"default", "other"}


def test_cat_filters_by_database_measurement_and_time(wal: Path) -> None:
    segment = write_segment(wal)
    assert len(run("cat", "--json", "--database", "other", segment).splitlines()) == 5
    assert len(run("cat", "--json", "--measurement", "cpu", segment).splitlines()) == 5
    assert run("cat", "--json", "--until", "2020-01-01", segment) == ""
    assert len(run("cat", "--json", "--since", "2020-01-01", segment).splitlines()) == 10
    assert "--since" in run("cat", "--since", "yesterday", segment, code=1)


def test_arrow_entries_are_printed_filtered_and_verified() -> None:
    file = ROOT / "tests" / "golden" / "arrow.wal"
    first, second = (json.loads(line) for line in run("cat", "--json", file).splitlines())
    assert first == {
        "measurement": "cpu",
        "_database": "metrics",
        "time": "2025-10-09T23:59:59Z",
        "host": "a",
        "usage": 0.5,
    }
    assert (second["time"], second["usage"]) == ("2025-10-09T23:59:59.000001Z", None)
    assert run("cat", "--json", "--measurement", "mem", file) == ""
    assert "'cpu'  2 records" in run("cat", file)
    assert "clean" in run("verify", file)


def test_streams_of_telemetry_are_printed_with_their_times() -> None:
    """Samples of remote write and log records of OTLP, as entries of kind 3; a record may lack a time of its own."""
    file = ROOT / "tests" / "golden" / "streams" / "telemetry.wal"
    assert [line.split()[3:] for line in run("cat", file).splitlines()] == [
        ["metrics", "'prometheus'", "3", "records"],
        ["default", "'otel_logs'", "2", "records"],
    ]
    rows = [json.loads(line) for line in run("cat", "--json", file).splitlines()]
    assert [(row["time"], row["labels"], row["value"]) for row in rows[:3]] == [
        ("2025-10-09T23:59:59Z", '{"job":"a"}', 1.5),
        ("2025-10-09T23:59:59.001000Z", '{"job":"b"}', None),
        ("2025-10-09T23:59:59.002000Z", "{}", 0.0),
    ]
    assert [(row["time"], row["Body"], row["ServiceName"]) for row in rows[3:]] == [
        ("2025-10-09T23:59:59Z", "hello", "shop"),
        (1_760_054_400_000_020, "3", "shop"),
    ]
    chosen = ("--measurement=prometheus", "--until=2025-10-10T00:00:00.000020Z")
    assert [json.loads(line) for line in run("cat", "--json", *chosen, file).splitlines()] == rows[:3]


@pytest.mark.parametrize(
    ("command", "of_file", "reason"),
    [
        ("ls", True, "is a file; name the directory"),
        ("ack", True, "is a file; name the directory"),
        ("replay", True, "is a file; name the directory"),
        ("cat", False, "is a directory; name one of its files"),
        ("salvage", False, "is a directory; name one of its files"),
    ],
)
def test_a_file_for_a_directory_is_refused_and_the_reverse(
    tmp_path: Path, command: str, of_file: bool, reason: str
) -> None:
    golden = ROOT / "tests" / "golden"
    to = [tmp_path / "saved.wal"] if command == "salvage" else []
    assert reason in run(command, golden / "plain.wal" if of_file else golden, *to, code=1)
    assert list(tmp_path.iterdir()) == []


def test_verify_says_what_is_wrong_and_where(wal: Path) -> None:
    segment = write_segment(wal)
    assert "no problems" in run("verify", wal)
    offsets = [entry.offset for entry in _entries(segment)]
    data = bytearray(segment.read_bytes())
    data[offsets[3] + 20] ^= 0xFF
    segment.write_bytes(data)
    output = run("verify", segment, code=1)
    assert f"offset {offsets[3]}: checksum mismatch" in output
    assert "salvage" in output


def test_verify_of_something_else_says_that_it_is_no_log(tmp_path: Path) -> None:
    other = tmp_path / "x.wal"
    other.write_bytes(b"something else entirely")
    assert "magic" in run("verify", other, code=1)


def test_salvage_keeps_all_but_the_damaged_entry(wal: Path, tmp_path: Path) -> None:
    segment = write_segment(wal)
    before = [list(batch) for batch in WALReader(segment).read_all()]
    offsets = [entry.offset for entry in _entries(segment)]
    data = bytearray(segment.read_bytes())
    data[offsets[4] + 20] ^= 0xFF
    segment.write_bytes(data)
    saved = tmp_path / "saved.wal"
    assert "9 entries saved" in run("salvage", segment, saved)
    assert WALReader(saved).read_all() == before[:4] + before[5:]
    assert "exists already" in run("salvage", segment, saved, code=1)


def test_salvage_reads_on_behind_a_damaged_file_header(wal: Path, tmp_path: Path) -> None:
    segment = write_segment(wal)
    before = WALReader(segment).read_all()
    data = bytearray(segment.read_bytes())
    data[:7] = b"\xff" * 7
    segment.write_bytes(data)
    run("salvage", segment, tmp_path / "saved.wal")
    assert WALReader(tmp_path / "saved.wal").read_all() == before
    # Under the name that it had, too: what it tells of itself agrees with its name.
    saved = tmp_path / "saved" / segment.name
    saved.parent.mkdir()
    run("salvage", segment, saved)
    assert "no problems" in run("verify", saved)
    assert WALReader(saved).read_all() == before


def test_replay_takes_in_files_of_arc_once(tmp_path: Path) -> None:
    source = tmp_path / "arc"
    source.mkdir()
    write_arc_file(source / "worker-1-20231114_221320.wal", 7)
    write_arc_file(source / "worker-2-20231114_221320.wal", 3)
    target = tmp_path / "node"
    assert "10 entries" in run("replay", source, cwd=tmp_path, WAL_DIR=str(target))
    assert "no WAL files" in run("replay", source, cwd=tmp_path, WAL_DIR=str(target))
    records = [record for file in target.glob("*.sealed") for batch in WALReader(file).read_all() for record in batch]
    assert len(records) == 10
    assert {record["_database"] for record in records} == {"arc"}
    assert len(list(source.glob("*.recovered"))) == 2


# Verdicts, and disks that cannot read


def in_process(disk: Disk, *arguments: str | Path) -> tuple[int, str]:
    """Exit code and output of `arcpipe wal …`, read through a disk of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "Disk", lambda: disk)
        done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.output + done.stderr


@pytest.mark.parametrize("identity", [b"", IDENTITY])
def test_verify_and_ls_tell_a_verdict_for_each_file(tmp_path: Path, identity: bytes) -> None:
    content, offsets = segment([columnar(number, 60, identity) for number in range(4)], identity=identity)
    whole = content + end(4, len(content), DAY + 9, identity)
    damaged = whole[: offsets[1] + 40] + b"\xff" + whole[offsets[1] + 41 :]
    files = {
        "worker-1-20251010_000000-000001.wal.sealed": (whole, "clean end"),
        "worker-1-20251010_000000-000002.wal": (content + b"torn", "torn tail"),
        "worker-1-20251010_000000-000003.wal.sealed": (damaged, "damaged"),
        "worker-1-20251010_000000-000004.wal.sealed": (content, "damaged"),
        "worker-1-20251010_000000-000005.wal.sealed": (whole, "unreadable"),
    }
    for name, (written, _) in files.items():
        (tmp_path / name).write_bytes(written)
    disk = BadBlocks(where="000005")
    code, output = in_process(disk, "verify", "--json", tmp_path)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert {Path(row["file"]).name: row["verdict"] for row in rows} == {name: files[name][1] for name in files}
    assert code == 1
    assert "2 damaged, 1 unreadable" in output
    code, output = in_process(disk, "ls", "--json", tmp_path)
    assert [json.loads(line)["verdict"] for line in output.splitlines()] == [verdict for _, verdict in files.values()]
    code, output = in_process(disk, "verify", tmp_path)
    assert "000005.wal.sealed: unreadable" in output
    assert "Input/output error" in output
    assert "its end entry is missing" in output
    for name, (_, verdict) in files.items():
        code, _ = in_process(disk, "verify", tmp_path / name)
        assert code == (verdict in ("damaged", "unreadable"))


def test_a_file_that_is_cut_while_it_is_looked_at_is_looked_at_again(tmp_path: Path) -> None:
    file = tmp_path / "worker-1-20251010_000000-000001.wal.sealed"
    file.write_bytes(segment([columnar(number, 60) for number in range(4)], closed=True)[0])
    code, output = in_process(BadBlocks(times=2), "verify", file)
    assert (code, "clean end, 4 entries" in output) == (0, True)


class _Moving(Disk):
    """Somebody renames or writes over files while they are looked at."""

    def __init__(self, *moves: Callable[[], object]) -> None:
        self._moves = list(moves)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        if self._moves:
            self._moves.pop(0)()
        return data


def test_a_segment_that_the_server_seals_meanwhile_is_looked_at_under_its_new_name(tmp_path: Path) -> None:
    active = tmp_path / "worker-1-20251010_000000-000001.wal"
    sealed = tmp_path / "worker-1-20251010_000000-000001.wal.sealed"
    content = segment([columnar(number, 60) for number in range(4)], closed=True)[0]
    for command in ("verify", "ls"):
        active.write_bytes(content)
        code, output = in_process(_Moving(lambda: active.rename(sealed)), command, "--json", tmp_path)
        [row] = [json.loads(line) for line in output.splitlines()]
        assert (code, row["verdict"], row["entries"]) == (0, "clean end", 4)
        assert row.get("state", "sealed") == "sealed"
        assert row.get("file", str(sealed)) == str(sealed)
        sealed.unlink()


def test_a_segment_that_is_uploaded_meanwhile_is_gone_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    """Its file is written over then: what is read of it says nothing about the segment."""
    sealed = tmp_path / "worker-1-20251010_000000-000001.wal.sealed"
    free = tmp_path / "free"

    def retire() -> None:
        sealed.rename(free)
        free.write_bytes(bytes(free.stat().st_size))

    for command, path in (("verify", tmp_path), ("verify", sealed), ("ls", tmp_path)):
        sealed.write_bytes(segment([columnar(number, 60) for number in range(4)], closed=True)[0])
        code, output = in_process(_Moving(retire), command, path)
        assert (code, "gone since" in output) == (0, command == "verify")
        assert "damaged" not in output.replace("damaged  torn_bytes", "")


def test_a_segment_that_is_written_to_meanwhile_is_not_called_damaged(tmp_path: Path) -> None:
    """Of a group that is just being written, a reader may see the later entries, and not yet the earlier ones."""
    active = tmp_path / "worker-1-20251010_000000-000001.wal"
    content, offsets = segment([columnar(number, 60) for number in range(4)])
    active.write_bytes(content[: offsets[2]] + bytes(offsets[3] - offsets[2]) + content[offsets[3] :])
    code, output = in_process(_Moving(lambda: None, lambda: active.write_bytes(content)), "verify", tmp_path)
    assert (code, "torn tail, 4 entries, no problems" in output) == (0, True)


def test_cat_of_a_file_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker-1-20251010_000000-000001.wal.sealed"
    file.write_bytes(segment([columnar(number, 6000) for number in range(4)], closed=True)[0])
    monkeypatch.setattr(reader, "Disk", lambda: BadBlocks(12_000, 12_001))
    with pytest.raises(WALError, match=r"cannot be read: .*Input/output error"):
        list(entries_of(str(file)))


@pytest.mark.parametrize("identity", [b"", IDENTITY])
def test_salvage_reads_around_bad_blocks_and_says_what_it_skipped(tmp_path: Path, identity: bytes) -> None:
    file = tmp_path / f"{NAME}.wal.sealed"
    content, offsets = segment(
        [columnar(number, 1000, identity) for number in range(40)], closed=True, identity=identity
    )
    file.write_bytes(content)
    saved = tmp_path / "saved.wal"
    code, output = in_process(BadBlocks(16384, 16385), "salvage", file, saved)
    hit = [number for number, offset in enumerate(offsets) if 16384 - 1100 < offset < 20480]
    assert code == 0
    assert f"{40 - len(hit)} entries saved" in output
    assert "offset 16384: unreadable: Input/output error (4096 bytes)" in output
    scan = reader.SegmentScan(saved)
    found = [msgpack.unpackb(entry.payload)[3]["columns"]["number"][0] for entry in scan]
    assert found == [number for number in range(40) if number not in hit]
    assert scan.report.verdict is ScanVerdict.CLEAN


@pytest.mark.parametrize("identity", [b"", IDENTITY])
def test_copies_have_an_identity_of_their_own(tmp_path: Path, identity: bytes) -> None:
    source = tmp_path / "source" / f"{NAME}.wal.sealed"
    source.parent.mkdir()
    payloads = [columnar(number, 60, identity) for number in range(4)]
    source.write_bytes(segment(payloads, closed=True, identity=identity)[0])
    salvage(str(source), str(tmp_path / "saved.wal"))
    target = WALDirectory(tmp_path / "node")
    [replayed] = replay(target, [str(source)], lambda *_: None)
    assert replayed.entries == 4
    [copy] = target.segments(".wal.sealed")
    identities = set()
    for path in (tmp_path / "saved.wal", Path(copy.path)):
        scan = reader.SegmentScan(path)
        entries = list(scan)
        assert [msgpack.unpackb(entry.payload)[3] for entry in entries] == [msgpack.unpackb(p)[3] for p in payloads]
        assert [entry.timestamp for entry in entries] == [DAY + number for number in range(1, 5)]
        assert (scan.report.verdict, scan.report.damage) == (ScanVerdict.CLEAN, [])
        assert {identity_of(entry.payload) for entry in entries} == {scan.report.identity}
        identities.add(scan.report.identity)
    assert len(identities) == 2
    assert not identities & {identity, b""}
    assert is_identity_of(scan.report.identity, copy.name.slot, copy.name.seq)


def test_a_payload_that_is_no_envelope_is_copied_as_it_is(tmp_path: Path) -> None:
    write_arc_file(tmp_path / "worker-1-20231114_221320.wal", 3)
    mixed = tmp_path / "mixed.wal"
    rows = msgpack.packb([{"measurement": "cpu", "v": 1}])
    mixed.write_bytes(segment([columnar(0), rows, columnar(2)], closed=True)[0])
    for source in (tmp_path / "worker-1-20231114_221320.wal", mixed):
        saved = tmp_path / f"{source.name}.saved"
        salvage(str(source), str(saved))
        scan = reader.SegmentScan(saved)
        assert [bytes(entry.payload) for entry in scan] == [bytes(entry.payload) for entry in _entries(source)]
        assert (scan.report.identity, scan.report.verdict) == (b"", ScanVerdict.CLEAN)


def test_replay_leaves_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Replay of a file that cannot be read leaves it and takes the others."""
    source = tmp_path / "source"
    source.mkdir()
    contents = {}
    for seq in (1, 2, 3):
        path = source / f"worker-1-20251010_000000-{seq:06d}.wal.sealed"
        path.write_bytes(segment([columnar(10 * seq + n, 3000) for n in range(4)], closed=True)[0])
        contents[seq] = path.read_bytes()
    target = WALDirectory(tmp_path / "node", BadBlocks(6000, 6001, where="000002.wal"))
    with pytest.raises(WALError, match=r"000002\.wal\.sealed cannot be read: .*It stays where it is"):
        list(replay(target, replay_sources(str(source)), lambda *_: None))
    assert len(target.segments(".wal.sealed")) == 2
    assert (source / "worker-1-20251010_000000-000002.wal.sealed").read_bytes() == contents[2]
    assert len(list(source.glob("*.recovered"))) == 2
    healthy = WALDirectory(tmp_path / "node")
    assert [done.entries for done in replay(healthy, replay_sources(str(source)), lambda *_: None)] == [4]
    assert len(healthy.segments(".wal.sealed")) == 3
    assert not list(Path(target.path).glob("*.incoming"))


def test_a_file_at_the_path_of_one_that_waits_does_not_take_its_place(tmp_path: Path) -> None:
    """The documentation has `saved/1.wal` for everything that is salvaged, and a node may upload later."""
    target = WALDirectory(tmp_path / "node")
    saved = tmp_path / "saved"
    for number in range(3):
        saved.mkdir()
        salvage(str(write_segment(tmp_path / f"damaged-{number}", number + 1)), str(saved / "1.wal"))
        list(replay(target, replay_sources(str(saved)), lambda *_: None))
        shutil.rmtree(saved)
    files = [file.path for file in target.segments(".wal.sealed")]
    assert sorted(len(WALReader(file).read_all()) for file in files) == [2, 4, 6]


@pytest.mark.parametrize("operations", range(14))
def test_names_with_dots_are_kept_apart_whatever_interrupts_a_replay(tmp_path: Path, operations: int) -> None:
    source = tmp_path / "arc"
    source.mkdir()
    for number, name in enumerate(("node.one.wal", "node.two.wal", "node.two.wal.sealed"), 1):
        write_arc_file(source / name, number)
    target = WALDirectory(tmp_path / "node")
    target.make()
    with contextlib.suppress(_Interrupted):
        interrupted = WALDirectory(tmp_path / "node", _StoppingDisk(operations))
        list(replay(interrupted, replay_sources(str(source)), lambda *_: None))
    finish_interrupted(target, str(source))
    list(replay(target, replay_sources(str(source)), lambda *_: None))
    files = [file.path for file in target.segments(".wal.sealed")]
    assert sorted(len(WALReader(file).read_all()) for file in files) == [1, 2, 3]
    assert sorted(path.name for path in source.iterdir()) == ["node.one.wal.recovered", "node.two.wal.recovered"]
    assert not list(Path(target.path).glob("*.incoming"))


def test_a_copy_that_an_earlier_version_left_is_finished(tmp_path: Path) -> None:
    """Its name depends on the path alone."""
    source = tmp_path / "arc"
    source.mkdir()
    file = source / "worker-1-20231114_221320.wal"
    write_arc_file(file, 3)
    target = WALDirectory(tmp_path / "node")
    target.make()
    number = int.from_bytes(hashlib.sha256(str(file).encode()).digest()[:6], "big") + 1
    copy = Path(target.path, f"worker-0-19700101_000000-{number:06d}.incoming")
    copy.write_bytes(file.read_bytes())
    file.rename(f"{file}.recovered")
    assert finish_interrupted(target, str(source)) == 1
    [sealed] = target.segments(".wal.sealed")
    assert len(WALReader(sealed.path).read_all()) == 3


def test_replay_refuses_the_nodes_own_log(wal: Path) -> None:
    write_segment(wal)
    assert "own WAL" in run("replay", wal, code=1, WAL_DIR=str(wal))


def test_replay_of_a_directory_that_cannot_be_written_to_says_what_to_do(
    wal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(tmp_path / "dead")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(WALDirectory, "lock", refuse)
    monkeypatch.setenv("WAL_DIR", str(wal))
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "dead")])
    assert "cannot be written to (Read-only file system)" in str(done.exception)
    assert "copy it, and replay the copy" in str(done.exception)


@pytest.mark.parametrize("folder", ["free", "batches", "quarantine", "spool"])
def test_replay_refuses_what_a_node_keeps_in_its_own_wal(wal: Path, folder: str) -> None:
    segment = write_segment(wal)
    WALDirectory(wal).make()
    file = segment.rename(wal / folder / "worker-1-20231114_221320-000001.wal")
    assert "a part of this node's own WAL" in run("replay", wal / folder, code=1, WAL_DIR=str(wal))
    assert file.exists()


def test_replay_refuses_retired_segments_of_whatever_node(wal: Path, tmp_path: Path) -> None:
    """They are named as other segments are, and hold what was uploaded."""
    source = tmp_path / "dead" / "free"
    source.mkdir(parents=True)
    segment = write_segment(tmp_path / "dead")
    retired = segment.rename(source / f"00001700000000000000-{segment.name.split('.')[0]}.wal")
    (source / "worker-1-20231114_221320-000009.wal").write_bytes(retired.read_bytes())
    assert "a replay would store them twice" in run("replay", source, code=1, WAL_DIR=str(wal))
    assert sorted(path.suffix for path in source.glob("*.wal*")) == [".wal", ".wal"]
    assert not list(wal.glob("*.sealed"))


class _Interrupted(Exception):
    pass


class _StoppingDisk(Disk):
    """Stops for ever before its n-th operation, as a killed process does."""

    def __init__(self, operations: int) -> None:
        self.left = operations

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Interrupted

    def write(self, fd: int, buffers, offset: int) -> None:  # type: ignore[no-untyped-def]
        self._step()
        super().write(fd, buffers, offset)

    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)

    def rename(self, source: str, target: str) -> None:
        self._step()
        super().rename(source, target)

    def sync_directory(self, path: str) -> None:
        self._step()
        super().sync_directory(path)


@pytest.mark.parametrize("operations", range(14))
def test_an_interrupted_replay_goes_on_without_loss_or_doubling(tmp_path: Path, operations: int) -> None:
    source = tmp_path / "arc"
    source.mkdir()
    for slot in (1, 2):
        write_arc_file(source / f"worker-{slot}-20231114_221320.wal", 3)
    target = WALDirectory(tmp_path / "node")
    target.make()
    try:
        interrupted = WALDirectory(tmp_path / "node", _StoppingDisk(operations))
        list(replay(interrupted, replay_sources(str(source)), lambda *_: None))
    except _Interrupted:
        pass
    finish_interrupted(target, str(source))
    list(replay(target, replay_sources(str(source)), lambda *_: None))
    values = [
        record["v"]
        for file in Path(target.path).glob("*.sealed")
        for batch in WALReader(file).read_all()
        for record in batch
    ]
    assert sorted(values) == [0, 0, 1, 1, 2, 2]
    assert not list(Path(target.path).glob("*.incoming"))


def _entries(path: Path):  # type: ignore[no-untyped-def]
    from arcpipe.wal.reader import SegmentScan

    return list(SegmentScan(path))
