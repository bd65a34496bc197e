"""A kill or a power cut while something is found, and while it is acknowledged: nothing is told as less than it is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from arcpipe.wal import acknowledged, findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import DAMAGED, LOST_SEGMENTS, Finding
from tests.crash.power_cut import State, states_after_kills, states_after_power_cuts
from tests.crash.recording import Note, RecordingDisk
from tests.crash.system_calls import mounted


def directory_on(disk: RecordingDisk) -> WALDirectory:
    return WALDirectory(f"{disk.base}/wal")


@pytest.fixture(scope="module")
def disk() -> RecordingDisk:
    """Two findings, an acknowledgement of both, another finding, its acknowledgement. Each says when it is durable."""
    disk = RecordingDisk()
    with mounted(disk):
        directory = directory_on(disk)
        directory.make()
        disk.note("found", 0)
        disk.note("acknowledged", 0)
        for round in range(2):
            findings.note(directory, [Finding(DAMAGED, f"worker-{round}", 1, "why")])
            if not round:
                findings.note(directory, [Finding(LOST_SEGMENTS, "worker-1", 1, "why")])
            disk.note("found", 2 + round)
            acknowledged.acknowledge(directory, acknowledged.look(directory), acknowledged.ALL_CODES, "somebody")
            disk.note("acknowledged", 2 + round)
    return disk


def states(disk: RecordingDisk) -> Iterator[State]:
    begun = next(at for at, operation in enumerate(disk.log) if isinstance(operation, Note))
    yield from states_after_kills(disk, begun)
    yield from states_after_power_cuts(disk, random.Random(1), 300, begun)


def test_durable_findings_are_told_until_they_are_acknowledged(disk: RecordingDisk) -> None:
    """What is durable is told until it is acknowledged and never as damage."""
    tried = 0
    for state in states(disk):
        notes = [note for note in disk.log[: state.after] if isinstance(note, Note)]
        said = {"found": 0, "acknowledged": 0} | {note.kind: note.value for note in notes}
        with mounted(left := RecordingDisk(state.image)):
            seen = acknowledged.look(directory_on(left))
            assert (seen.findings_problem, seen.acknowledged_problem) == ("", ""), state.kind
            total = sum(seen.record.counts.values()) if seen.record is not None else 0
            open_now = sum(found.count for found in seen.findings.values())
            assert said["found"] <= total <= 3
            assert total - open_now >= said["acknowledged"]
            assert total - open_now in (0, 2, 3)  # what somebody has seen at once
            findings.note(directory_on(left), [Finding(DAMAGED, "worker-9", 1, "why")])
            assert sum(found.count for found in acknowledged.look(directory_on(left)).findings.values()) == open_now + 1
        tried += 1
    assert tried > 50
