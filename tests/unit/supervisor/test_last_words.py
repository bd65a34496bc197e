"""Whether everything is uploaded is said of what was seen, and never guessed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from arcpipe.supervisor import last_words
from arcpipe.supervisor.last_words import EXIT_UNKNOWN, Left
from arcpipe.wal import acknowledged, findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import DAMAGED, DEAD_LETTERS, LOST_RECORDS, Finding

BATCH = "0123456789ab-20261122T090000-3.17-9f86d081"


@pytest.fixture
def directory(tmp_path: Path) -> WALDirectory:
    made = WALDirectory(tmp_path / "wal")
    made.make()
    return made


def spoken(caplog: pytest.LogCaptureFixture, directory: WALDirectory, **known: Any) -> tuple[int, str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        code = last_words.speak(directory, **known)
    [line] = caplog.messages
    return code, line


def touch(*parts: str) -> None:
    Path(*parts).write_bytes(b"")


def test_everything_is_uploaded_where_nothing_is_left(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOCK", "node.json", "schema.json", "schema.json.copy", "findings.lock"):
        touch(directory.path, name)
    touch(directory.path, "worker-1-20251008_143000-000001.wal.recovered")
    for name in ("spare-1", "spare-2", "spare-1.tmp"):
        touch(directory.batches, name)
    Path(directory.quarantine, "lost+found").mkdir()
    assert spoken(caplog, directory) == (0, "stopped; everything is uploaded")


def test_each_kind_of_file_that_waits_is_counted(directory: WALDirectory, caplog: pytest.LogCaptureFixture) -> None:
    touch(directory.path, "worker-1-20251008_143000-000001.wal")
    touch(directory.path, "worker-7-20251008_143000-000001.wal.sealed")
    os.symlink("nowhere", os.path.join(directory.path, "worker-8-20251008_143000-000001.wal.sealed"))
    touch(directory.path, "worker-0-19700101_000000-123456789.incoming")
    for name in (f"{BATCH}.json", f"{BATCH}.journal", f"{BATCH[:-1]}2.uploaded.json"):
        touch(directory.batches, name)
    touch(directory.quarantine, "worker-1-20251008_143000-000002.wal")
    assert last_words.look(directory) == Left(1, 2, 2, 1, 1)
    assert spoken(caplog, directory) == (
        0,
        "stopped; the next start goes on with 1 segments that could not be recovered, 2 sealed segments, "
        "2 unfinished batches and 1 copies of an interrupted replay. Keep the WAL directory",
    )


def test_batches_that_no_table_has_yet_are_counted(directory: WALDirectory, caplog: pytest.LogCaptureFixture) -> None:
    tables = Path(directory.path, "tables")
    tables.mkdir()
    for name in ("ledger.json", "state.json", "LOCK", "iceberg.db", f"{7:020}-{BATCH}.json", f"{8:020}-{BATCH}2.json"):
        (tables / name).touch()
    assert last_words.look(directory).uncommitted == 2
    line = "stopped; the next start goes on with 2 batches that are not committed to tables. Keep the WAL directory"
    assert spoken(caplog, directory) == (0, line)


def test_what_was_never_uploaded_is_no_part_of_everything(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    touch(directory.quarantine, "worker-1-20251008_143000-000002.wal")
    findings.note(directory, [Finding(DAMAGED, "worker-1", 3, "checksum"), Finding(DEAD_LETTERS, "batch", 4, "odd")])
    line = "stopped; everything is uploaded but for 1 files in quarantine and 3 damaged places. Keep the WAL directory"
    assert spoken(caplog, directory) == (0, line)
    acknowledged.acknowledge(directory, acknowledged.look(directory), acknowledged.ALL_CODES, "somebody")
    line = "stopped; everything is uploaded but for 1 files in quarantine. Keep the WAL directory"  # it is there
    assert spoken(caplog, directory) == (0, line)


def test_lost_records_are_told_whether_they_could_be_noted_or_not(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    line = "stopped; everything is uploaded but for 5 lost records. Keep the WAL directory"
    assert spoken(caplog, directory, lost_records=5) == (0, line)
    findings.note(directory, [Finding(LOST_RECORDS, "ingest 1", 5, "why")])
    assert spoken(caplog, directory, lost_records=5) == (0, line)


@pytest.mark.parametrize("folder", ["", "batches", "quarantine"])
def test_what_cannot_be_listed_makes_it_unknown(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    os.rename(os.path.join(directory.path, folder), f"{directory.path}.away")
    code, line = spoken(caplog, directory)
    assert code == EXIT_UNKNOWN
    assert line.startswith("stopped; whether everything is uploaded is unknown: [Errno 2] No such file or directory")
    assert line.endswith(". Keep the WAL directory")


def test_a_record_that_cannot_be_read_makes_it_unknown(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    touch(findings.path_of(directory))
    code, line = spoken(caplog, directory)
    assert code == EXIT_UNKNOWN
    assert "findings.json is damaged" in line
