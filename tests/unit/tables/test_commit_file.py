"""Commit files: names, bytes, and what is damaged or of another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.tables import commit_file
from arcpipe.tables.commit_file import VERSION, Busy, CommitFile, CommitFiles, DataFile, TableFiles
from arcpipe.wal.checksum import with_checksum

KEY = "db/cpu/2026/01/01/00/cpu_1.parquet"


def content_of(seq: int = 7, batch_id: str = "n-20260101T000000-1.1-ab") -> CommitFile:
    files = commit_file.by_table([(KEY, DataFile(KEY, 3, 400, 0, 9))])
    return CommitFile(VERSION, seq, "n", batch_id, "file:///lake", files)


def write(files: CommitFiles, content: CommitFile, data: bytes | None = None) -> str:
    files.make()
    name = f"{content.seq:020}-{content.batch_id}.json"
    Path(files.path(name)).write_bytes(commit_file.encode(content) if data is None else data)
    return name


def test_files_are_grouped_by_table_and_keys_come_back() -> None:
    other = "db/mem/2026/01/01/00/mem_1.parquet"
    tables = commit_file.by_table([(key, DataFile(key, 1, 2, 3, 4)) for key in (other, KEY)])
    assert [table.folder for table in tables] == ["db/cpu", "db/mem"]
    assert [key for table in tables for key in table.keys()] == [KEY, other]  # noqa: SIM118


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read(tmp_path: Path, compressed: bool) -> None:
    files = CommitFiles(tmp_path)
    write(files, content_of(), commit_file.encode(content_of(), compressed))
    [name] = files.names()
    assert (name.seq, name.batch_id) == (7, content_of().batch_id)
    assert files.read(name) == content_of()


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_bit_and_every_cut_is_damage(tmp_path: Path, compressed: bool) -> None:
    files = CommitFiles(tmp_path)
    data = commit_file.encode(content_of(), compressed)
    broken = [data[:at] for at in range(0, len(data), 7)]
    broken += [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for each in broken:
        write(files, content_of(), each)
        try:
            found = files.read(files.names()[0])
        except DamagedFile:
            continue
        assert compressed  # padding between the end of the stream and its checksum
        assert found == content_of()


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    files = CommitFiles(tmp_path)
    write(files, content_of(), with_checksum(b'{"version":2,"seq":7}'))
    with pytest.raises(UnknownVersion, match="another version of arcpipe"):
        files.read(files.names()[0])
    assert len(files.names()) == 1


def test_a_file_under_the_name_of_another_is_damage(tmp_path: Path) -> None:
    files = CommitFiles(tmp_path)
    write(files, content_of(8), commit_file.encode(content_of(7)))
    with pytest.raises(DamagedFile, match="has another name"):
        files.read(files.names()[0])


def test_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = CommitFiles(tmp_path)
    for seq in (3 << 32, 9, 1 << 40, 10):
        write(files, content_of(seq))
    for name in ("ledger.json", "LOCK", "state.json", f"{5:020}-x.json.tmp"):
        Path(files.path(name)).touch()
    assert [name.seq for name in files.names()] == [9, 10, 3 << 32, 1 << 40]
    files.tidy()
    assert not Path(files.path(f"{5:020}-x.json.tmp")).exists()


def test_a_second_committer_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with (
        CommitFiles(tmp_path).lock(),
        pytest.raises(Busy, match=r"process [0-9]+ commits"),
        CommitFiles(tmp_path).lock(),
    ):
        pass


def test_without_the_folder_nothing_waits(tmp_path: Path) -> None:
    assert CommitFiles(tmp_path).names() == []


def test_bytes_of_unknown_files_count_nothing() -> None:
    table = TableFiles("db/m", [DataFile("a", 1, 10, 0, 0), DataFile("b", -1, -1, -1, -1)])
    assert CommitFile(VERSION, 1, "n", "b", "s", [table]).bytes == 10
