"""Retention deletes nothing within a day of its announcement, of a change, or of a jump of the clock."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.compaction.retention_clock import AHEAD_US, BACK_US, DAY_US, WAIT_US, RetentionClock, Watch, judge

HOUR = 3_600_000_000
NOW = 1_790_000_000_000_000
DAYS = {"db": 7}


def clock_after_a_day(directory: Path) -> RetentionClock:
    """Return a clock that lets things go at NOW."""
    clock = RetentionClock(str(directory))
    assert clock.look(DAYS, NOW - DAY_US) is not None
    assert clock.look(DAYS, NOW) is None
    return clock


def test_the_first_delete_comes_a_day_after_the_first_look(tmp_path: Path) -> None:
    clock = RetentionClock(str(tmp_path))
    first = clock.look(DAYS, NOW)
    assert first is not None
    assert (first.until_us, first.reason) == (NOW + WAIT_US, "retention is new here")
    for hour in range(1, 24):
        waiting = clock.look(DAYS, NOW + hour * HOUR)
        assert waiting is not None
        assert waiting.until_us == first.until_us
    assert clock.look(DAYS, NOW + WAIT_US) is None
    assert RetentionClock(str(tmp_path)).look(DAYS, NOW + WAIT_US + HOUR) is None


@pytest.mark.parametrize(
    ("moved_us", "reason"),
    [
        (365 * DAY_US, "the last look was 365.0 days ago: either the server was off, or its clock is wrong"),
        (AHEAD_US + 1, "the last look was 1.0 days ago"),
        (-BACK_US - 1, "the clock was set back by 0.1 hours"),
    ],
)
def test_a_jump_of_the_clock_begins_a_day_of_waiting(tmp_path: Path, moved_us: int, reason: str) -> None:
    waiting = clock_after_a_day(tmp_path).look(DAYS, NOW + moved_us)
    assert waiting is not None
    assert waiting.until_us == NOW + moved_us + WAIT_US
    assert waiting.reason.startswith(reason)


@pytest.mark.parametrize(
    ("days", "waits"),
    [({"db": 6}, True), ({"db": 7, "other": 1}, True), ({"db": 8}, False), ({"db": 7}, False)],
)
def test_a_change_that_lets_more_go_begins_a_day_of_waiting(tmp_path: Path, days: dict[str, int], waits: bool) -> None:
    waiting = clock_after_a_day(tmp_path).look(days, NOW + HOUR)
    assert (waiting is not None) == waits


@pytest.mark.parametrize("damage", [b"", b"{}", b"x" * 100])
def test_a_damaged_state_begins_a_day_of_waiting(tmp_path: Path, damage: bytes) -> None:
    clock = clock_after_a_day(tmp_path)
    Path(clock.path).write_bytes(damage)
    assert clock.look(DAYS, NOW + HOUR) is not None
    assert clock.look(DAYS, NOW + HOUR + WAIT_US) is None


def test_a_state_that_cannot_be_read_is_no_new_state(tmp_path: Path) -> None:
    clock = clock_after_a_day(tmp_path)
    os.rename(clock.path, f"{clock.path}.aside")
    os.mkdir(clock.path)
    with pytest.raises(IsADirectoryError):
        clock.look(DAYS, NOW + HOUR)


@given(st.lists(st.tuples(st.integers(-2 * DAY_US, 3 * DAY_US), st.integers(1, 9)), min_size=1, max_size=30))
def test_looks_that_delete_follow_an_even_day(steps: list[tuple[int, int]]) -> None:
    """Whatever the clock does: since a look a day before the delete, no step was a jump, and no change let more go."""
    watch: Watch | None = None
    now, seen = NOW, list[tuple[int, int]]()
    for step, days in steps:
        now += step
        watch, _ = judge(watch, {"db": days}, now)
        seen.append((now, days))
        if now - watch.since_us >= WAIT_US:
            start = next(index for index, (then, _) in enumerate(seen) if then == watch.since_us)
            even = seen[start:]
            assert even[-1][0] - even[0][0] >= WAIT_US
            for (before, more), (after, less) in itertools.pairwise(even):
                assert -BACK_US <= after - before <= AHEAD_US
                assert less >= more
