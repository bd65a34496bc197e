"""Lines that a start begins with, where settings and machine do not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from arcpipe import native
from arcpipe.config import cores
from arcpipe.config.settings import WAL, Server, Settings
from arcpipe.config.settings_tables import Tables
from arcpipe.counters import Counters, Node
from arcpipe.supervisor import first_words

MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("free", "backlog", "room"),
    [(20_992, 0, None), (20_991, 0, 20_479), (10_992, 10_000, None), (10_000, 0, 9_488), (0, 0, 0)],
)
def test_a_backlog_limit_that_the_disk_has_no_room_for_is_told(
    free: int, backlog: int, room: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is 20480 MB, and 512 MB are never used; what waits already has its room."""
    node = Counters(1).node
    node[Node.DISK_TOTAL_BYTES] = 1 << 50
    node[Node.DISK_FREE_BYTES] = free * MEGABYTE
    node[Node.BACKLOG_BYTES] = backlog * MEGABYTE
    with caplog.at_level(logging.WARNING):
        first_words.warn_of_a_small_disk(Settings(wal=WAL(dir="/x")), node)
    told = f"wal.max_backlog_mb = 20480 does not fit the disk of /x, which has room for {room} MB"
    assert (told in caplog.text) == (room is not None)
    assert len(caplog.records) == (room is not None)


def test_a_disk_that_could_not_be_measured_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    first_words.warn_of_a_small_disk(Settings(), Counters(1).node)
    assert not caplog.records


def test_where_the_number_of_workers_comes_from_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "KERNEL", None)
    with caplog.at_level(logging.INFO):
        first_words.say(Settings(server=Server(workers=3)), 3)
        assert not caplog.records
        monkeypatch.setattr(cores, "available", lambda: cores.Cores(2, "there are two", "/sys/x: Permission denied"))
        first_words.say(Settings(warnings=("environment X: not used",)), 2)
    assert [record.getMessage() for record in caplog.records] == [
        "environment X: not used",
        "the CPU quota of the cgroup cannot be read: /sys/x: Permission denied; making one worker per core",
        "2 workers: there are two",
    ]


@pytest.mark.parametrize(
    ("kernel", "refusal", "said"),
    [
        (None, "", []),
        (native, "", [(logging.INFO, "the native kernel is used")]),
        (None, "it is of X", [(logging.WARNING, "it is of X")]),
    ],
)
def test_the_kernel_is_named_if_it_is_used_or_refused(
    kernel: object, refusal: str, said: list[tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "KERNEL", kernel)
        patch.setattr(native, "REFUSAL", refusal)
        first_words.say(Settings(server=Server(workers=3)), 3)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == said


def test_batches_that_wait_for_tables_that_were_switched_off_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(wal=WAL(dir=str(tmp_path)))
    first_words.warn_of_forgotten_tables(settings)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / f"{7:020}-n-20260101T000000-1.1-ab.json").touch()
    first_words.warn_of_forgotten_tables(Settings(wal=settings.wal, tables=Tables(format="delta")))
    assert caplog.messages == []
    first_words.warn_of_forgotten_tables(settings)
    assert "1 batches in" in caplog.messages[0]
    assert "no table gets them until it is set again" in caplog.messages[0]
