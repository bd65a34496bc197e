"""`arcpipe wal …` as a user calls it: on files that the real writer made, damaged by hand."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgpack
import pytest

from arcpipe.disk import Disk
from arcpipe.wal import WALReader, WALWriter
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.inspect import finish_interrupted, replay, replay_sources


def run(*arguments: str | Path, code: int = 0, cwd: Path | None = None, **environment: str) -> str:
    """The standard output of `arcpipe wal …`; asserts its exit code."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARCPIPE_")}
    done = subprocess.run(
        [sys.executable, "-m", "arcpipe", "wal", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**inherited, **environment},
    )
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
    assert "no log files" in run("replay", source, cwd=tmp_path, WAL_DIR=str(target))
    records = [record for file in target.glob("*.sealed") for batch in WALReader(file).read_all() for record in batch]
    assert len(records) == 10
    assert {record["_database"] for record in records} == {"arc"}
    assert len(list(source.glob("*.recovered"))) == 2


def test_replay_refuses_the_nodes_own_log(wal: Path) -> None:
    write_segment(wal)
    assert "own log" in run("replay", wal, code=1, WAL_DIR=str(wal))


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
