"""A finding is told until an operator has seen it, and is not told any more once it was seen."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arcpipe.cli.wal import app
from arcpipe.errors import ArcpipeError, UnknownVersion, WALError
from arcpipe.wal import acknowledged, findings
from arcpipe.wal.checksum import with_checksum
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import DAMAGED, DEAD_LETTERS, LOST_SEGMENTS, Finding
from tests.support.waiting import WAIT_SECONDS
from tests.support.wal_doubles import BadBlocks

ALL = acknowledged.ALL_CODES


def damage(number: int, count: int = 1) -> Finding:
    return Finding(DAMAGED, f"worker-1-20261122_090000-{number:06d}", count, f"checksum mismatch {number}")


def open_counts(directory: WALDirectory) -> dict[str, int]:
    return {code: one.count for code, one in acknowledged.look(directory).findings.items()}


def acknowledge(directory: WALDirectory, *codes: str) -> None:
    acknowledged.acknowledge(directory, acknowledged.look(directory), codes or ALL, "somebody")


def flip(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def test_what_was_found_is_counted_once_however_often_it_is_found(directory: WALDirectory) -> None:
    assert findings.load(directory) is None
    findings.note(directory, [])
    assert findings.load(directory) is None
    findings.note(directory, [damage(1, 2), Finding(DEAD_LETTERS, "batch", 5, "why")])
    findings.note(directory, [damage(1, 2)])  # by the uploader, after recovery
    findings.note(directory, [Finding(DEAD_LETTERS, "batch", 7, "why")])  # two more by a later try
    record = findings.load(directory)
    assert record is not None
    assert record.counts == {DAMAGED: 2, DEAD_LETTERS: 7}
    assert [(noted.code, noted.count, noted.upto) for noted in record.latest] == [
        (DAMAGED, 2, 2),
        (DEAD_LETTERS, 5, 5),
        (DEAD_LETTERS, 2, 7),
    ]


def test_the_record_stays_small_and_counts_on(directory: WALDirectory) -> None:
    findings.note(directory, [Finding(LOST_SEGMENTS, "worker-2", 1, "x" * 10_000)])
    for first in range(0, 3000, 1000):
        findings.note(directory, [damage(number) for number in range(first, first + 1000)])
    record = findings.load(directory)
    assert record is not None
    assert record.counts == {LOST_SEGMENTS: 1, DAMAGED: 3000}
    assert len(record.latest) == 1000
    assert os.path.getsize(findings.path_of(directory)) < 400_000


def test_only_what_was_seen_is_acknowledged(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1), Finding(LOST_SEGMENTS, "worker-2", 1, "gone")])
    seen = acknowledged.look(directory)
    findings.note(directory, [damage(2, 3)])  # between the look and the acknowledgement
    acknowledged.acknowledge(directory, seen, ALL, "somebody")
    assert open_counts(directory) == {DAMAGED: 3}
    assert acknowledged.look(directory).findings[DAMAGED].latest[0].what == "checksum mismatch 2"
    acknowledge(directory)
    assert open_counts(directory) == {}
    acknowledged.acknowledge(directory, seen, ALL, "somebody who looked earlier")
    assert open_counts(directory) == {}
    findings.note(directory, [damage(2, 3)])  # known
    assert open_counts(directory) == {}
    findings.note(directory, [damage(3)])
    assert open_counts(directory) == {DAMAGED: 1}


def test_one_code_can_be_acknowledged_without_the_others(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1), Finding(LOST_SEGMENTS, "worker-2", 1, "gone")])
    acknowledge(directory, LOST_SEGMENTS)
    assert open_counts(directory) == {DAMAGED: 1}
    acknowledge(directory, DAMAGED)
    assert open_counts(directory) == {}


def test_the_history_tells_who_saw_what(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    acknowledge(directory)
    told = json.loads(Path(acknowledged.path_of(directory)).read_bytes())["history"]
    assert [(one["by"], one["what"]) for one in told] == [
        (
            "somebody",
            ["damaged_entries: 1 damaged places, 1 since the beginning", f"{damage(1).subject}: 1, {damage(1).what}"],
        )
    ]


def test_a_file_in_quarantine_is_seen_as_that_file(directory: WALDirectory) -> None:
    path = Path(directory.quarantine, "worker-1.wal")
    path.write_bytes(b"bad")
    Path(directory.quarantine, "lost+found").mkdir()
    assert [file.name for file in acknowledged.look(directory).files] == ["worker-1.wal"]
    acknowledge(directory)
    assert acknowledged.look(directory).files == []
    path.write_bytes(b"another bad one")
    assert [file.size for file in acknowledged.look(directory).files] == [15]
    acknowledge(directory, DAMAGED)
    assert len(acknowledged.look(directory).files) == 1
    path.unlink()
    acknowledge(directory)
    assert json.loads(Path(acknowledged.path_of(directory)).read_bytes())["quarantine"] == []


def test_more_files_than_can_be_compared_are_not_acknowledged(directory: WALDirectory) -> None:
    seen = acknowledged.look(directory)
    many = [acknowledged.QuarantinedFile(str(number), 0, 0) for number in range(10_001)]
    with pytest.raises(WALError, match="10001 files"):
        acknowledged.acknowledge(directory, acknowledged.Seen({}, many, seen.record, many), ALL, "somebody")
    findings.note(directory, [damage(1)])
    seen = acknowledged.look(directory)
    acknowledged.acknowledge(directory, acknowledged.Seen({}, many, seen.record, many), [DAMAGED], "somebody")
    assert open_counts(directory) == {}


def test_no_acknowledgement_outlives_a_damaged_record(directory: WALDirectory) -> None:
    """A damaged record is kept, and no earlier acknowledgement counts for the next."""
    findings.note(directory, [damage(number) for number in range(9)])
    acknowledge(directory)
    flip(findings.path_of(directory))
    assert "is damaged" in acknowledged.look(directory).findings_problem
    findings.note(directory, [damage(1)])
    seen = acknowledged.look(directory)
    assert seen.findings_problem == ""
    assert seen.findings[DAMAGED].count == 1
    assert [file.name[:9] for file in seen.files] == ["findings-"]
    flip(findings.path_of(directory))
    assert findings.set_aside_damaged(directory)
    assert not findings.set_aside_damaged(directory)
    assert len(acknowledged.look(directory).files) == 2


def test_a_record_that_cannot_be_read_is_never_replaced(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    before = Path(findings.path_of(directory)).read_bytes()
    acknowledge(directory)
    disk = directory.disk
    directory.disk = BadBlocks(where="findings.json")
    with pytest.raises(OSError, match="Input/output error"):
        findings.note(directory, [damage(2)])
    seen = acknowledged.look(directory)
    assert "Input/output error" in seen.findings_problem
    acknowledged.acknowledge(directory, seen, ALL, "somebody")  # nothing of it was seen
    directory.disk = disk
    assert Path(findings.path_of(directory)).read_bytes() == before
    assert open_counts(directory) == {}  # the earlier acknowledgement holds


def test_a_record_of_a_newer_version_is_left_alone(directory: WALDirectory) -> None:
    path = Path(findings.path_of(directory))
    path.write_bytes(with_checksum(b'{"version":2,"id":"x","counts":{},"latest":[]}'))
    before = path.read_bytes()
    with pytest.raises(UnknownVersion):
        findings.note(directory, [damage(1)])
    assert not findings.set_aside_damaged(directory)
    assert "version 2" in acknowledged.look(directory).findings_problem
    assert path.read_bytes() == before


def test_damaged_acknowledgements_count_for_nothing_and_can_be_given_again(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    acknowledge(directory)
    flip(acknowledged.path_of(directory))
    seen = acknowledged.look(directory)
    assert seen.findings[DAMAGED].count == 1
    assert "is damaged" in seen.acknowledged_problem
    acknowledge(directory)
    assert Path(f"{acknowledged.path_of(directory)}.damaged").exists()
    assert acknowledged.look(directory).acknowledged_problem == ""
    assert open_counts(directory) == {}


def test_acknowledgements_that_cannot_be_read_are_kept(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    acknowledge(directory)
    before = Path(acknowledged.path_of(directory)).read_bytes()
    disk = directory.disk
    directory.disk = BadBlocks(where="acknowledged.json")
    assert open_counts(directory) == {DAMAGED: 1}
    assert "Input/output error" in acknowledged.look(directory).acknowledged_problem
    with pytest.raises(WALError, match="nothing is acknowledged"):
        acknowledge(directory)
    directory.disk = disk
    assert Path(acknowledged.path_of(directory)).read_bytes() == before


def test_each_part_is_told_whatever_became_of_the_others(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    os.rmdir(directory.quarantine)
    seen = acknowledged.look(directory)
    assert seen.findings[DAMAGED].count == 1
    assert "No such file or directory" in seen.quarantine_problem


def _note_many(path: str, process: int) -> None:
    directory = WALDirectory(path)
    for number in range(20):
        findings.note(directory, [damage(process * 1000 + number)], WAIT_SECONDS)


def test_processes_that_find_something_at_the_same_time_lose_nothing(directory: WALDirectory) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_note_many, args=(directory.path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert open_counts(directory) == {DAMAGED: 60}


def test_who_holds_the_lock_for_ever_is_told(directory: WALDirectory) -> None:
    with open(os.path.join(directory.path, "findings.lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"holds findings\.lock"):
            findings.note(directory, [damage(1)], lock_seconds=0.1)
        with pytest.raises(OSError, match=r"holds findings\.lock"):  # of two at a time, one would undo the other's
            acknowledged.acknowledge(directory, acknowledged.look(directory), ALL, "somebody", lock_seconds=0.1)
    findings.note(directory, [damage(1)])
    assert open_counts(directory) == {DAMAGED: 1}


# The command


def ack(directory: WALDirectory, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["ack", directory.path, *arguments])
    assert done.exit_code == code, done.output
    return done.output if done.exception is None or code else str(done.exception)


def test_the_command_shows_and_acknowledges_what_it_has_shown(directory: WALDirectory) -> None:
    assert "nothing to acknowledge" in ack(directory)
    findings.note(directory, [damage(1, 2), Finding(LOST_SEGMENTS, "worker-2", 1, "gone")])
    Path(directory.quarantine, "odd").write_bytes(b"odd")
    shown = ack(directory, "--show")
    assert shown.splitlines() == [
        "damaged_entries: 2 damaged places, 2 since the beginning",
        f"  {damage(1).subject}: 2, checksum mismatch 1",
        "lost_segments: 1 lost segments, 1 since the beginning",
        "  worker-2: 1, gone",
        "quarantine: 1 files, 3 bytes",
        "  odd, 3 bytes",
    ]
    assert len(open_counts(directory)) == 2
    assert ack(directory, LOST_SEGMENTS).splitlines()[-1].startswith("Acknowledged.")
    assert open_counts(directory) == {DAMAGED: 2}
    ack(directory)
    assert "nothing to acknowledge" in ack(directory)


def test_the_command_names_the_codes_that_stay_open(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1), Finding(LOST_SEGMENTS, "worker-2", 1, "gone")])
    said = ack(directory, "quarantine").splitlines()
    assert said == [
        f"There is nothing to acknowledge of quarantine in {directory.path}. Open are: damaged_entries, lost_segments."
    ]
    assert open_counts(directory) == {DAMAGED: 1, LOST_SEGMENTS: 1}


def test_a_code_in_the_place_of_the_directory_is_told() -> None:
    done = CliRunner().invoke(app, ["ack", LOST_SEGMENTS])
    assert "lost_segments is a code: name the WAL directory before it" in str(done.exception)


def test_nothing_that_was_found_moves_the_cursor(directory: WALDirectory) -> None:
    findings.note(directory, [Finding(DAMAGED, "worker-1", 1, "odd\x1b[2J\nname")])
    Path(directory.quarantine, "odd\x1b[2J").write_bytes(b"odd")
    shown = ack(directory, "--show").splitlines()
    assert shown[1] == r"  worker-1: 1, odd\x1b[2J\nname"
    assert shown[3] == r"  odd\x1b[2J, 3 bytes"


def test_the_command_refuses_a_code_that_there_is_not(directory: WALDirectory) -> None:
    done = CliRunner().invoke(app, ["ack", directory.path, "worker_down"])
    assert isinstance(done.exception, ArcpipeError)
    assert "cannot be acknowledged; use damaged_entries, " in str(done.exception)


def test_the_command_begins_a_damaged_record_anew_and_says_so(directory: WALDirectory) -> None:
    findings.note(directory, [damage(1)])
    flip(findings.path_of(directory))
    shown = ack(directory)
    assert "What was found before is not known" in shown
    assert "quarantine: 1 files" in shown
    assert acknowledged.look(directory).files == []


def test_the_command_does_what_it_can_beside_a_record_that_cannot_be_read(directory: WALDirectory) -> None:
    Path(findings.path_of(directory)).mkdir()
    Path(directory.quarantine, "odd").write_bytes(b"odd")
    assert "quarantine: 1 files" in ack(directory, code=1)
    assert acknowledged.look(directory).files == []


def test_what_root_acknowledges_the_server_can_read(directory: WALDirectory) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(directory.path, 12345, 12345)
    findings.note(directory, [damage(1)])
    ack(directory)
    for name in ("acknowledged.json", "findings.json", "findings.lock"):
        assert os.stat(os.path.join(directory.path, name)).st_uid == 12345


def test_a_root_that_may_not_chown_notes_and_acknowledges(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without CAP_CHOWN, or where a file server takes root for nobody."""

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", refuse)
    findings.note(directory, [damage(1)])
    assert open_counts(directory) == {DAMAGED: 1}
    acknowledge(directory)
    assert open_counts(directory) == {}
