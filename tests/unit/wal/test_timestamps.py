"""Which of several neighbours has the damaged timestamp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.wal.timestamps import JUMP_US, LATEST_US, Culprit, judge

DAY = 1_760_054_400_000_000
NEWEST = DAY + 1_000_000


def judged(stamps: list[int], before: int = DAY, newest: int = NEWEST) -> tuple[list[int], list[int]]:
    """All timestamps of a segment as they are settled, and the places where one was found damaged."""
    settled, found = [], []
    for index, stamp in enumerate(stamps):
        result = judge(before, stamp, stamps[index + 1 : index + 3], newest)
        if result.damaged is not Culprit.NONE:
            found.append(index)
        before = result.timestamp
        settled.append(before)
    return settled, found


def test_timestamps_in_order_are_left_alone_however_far_apart() -> None:
    stamps = [DAY + 1, DAY + 5, DAY + 60 * JUMP_US, DAY + 60 * JUMP_US + 1]
    assert judged(stamps) == (stamps, [])


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(64))
@pytest.mark.parametrize("index", range(6))
def test_one_flipped_bit_is_one_damage_and_the_order_stays(index: int, bit: int) -> None:
    good = [DAY + 1000 * number for number in range(1, 7)]
    stamps = list(good)
    stamps[index] ^= 1 << bit
    settled, found = judged(stamps)
    in_order = [DAY, *settled] == sorted({DAY, *settled})
    assert in_order, "the order is lost"
    breaks_order = not (DAY if index == 0 else good[index - 1]) < stamps[index]
    breaks_order |= index < 5 and stamps[index] >= good[index + 1]
    breaks_order |= index == 5 and stamps[index] > NEWEST + JUMP_US
    assert len(found) == (1 if breaks_order else 0)
    # One that is in doubt is the damaged one, or its neighbour: both fit then.
    assert set(found) <= {index - 1, index, index + 1}
    if bit >= 37:  # a day: less is possible for the last one
        assert found == ([index] if breaks_order else [])
        assert DAY < settled[index] <= DAY + 7000


@given(
    gaps=st.lists(st.integers(1, 1 << 24), min_size=1, max_size=12),
    place=st.integers(0, 11),
    bit=st.integers(0, 63),
    before=st.sampled_from([0, DAY]),
)
def test_whatever_bit_flips_no_other_entry_is_moved_far(gaps: list[int], place: int, bit: int, before: int) -> None:
    good = [DAY + sum(gaps[: index + 1]) for index in range(len(gaps))]
    index = place % len(good)
    stamps = list(good)
    stamps[index] ^= 1 << bit
    settled, found = judged(stamps, before, newest=good[-1])
    assert settled == sorted(set(settled))
    assert len(found) <= 1
    for at, (was, now) in enumerate(zip(good, settled, strict=True)):
        if abs(at - index) > 1:
            assert was == now
    if found:
        assert abs(found[0] - index) <= 1


def test_two_that_agree_win_against_one_before_that_nothing_confirmed() -> None:
    """The one before was followed by damage when it was judged, so it was believed."""
    assert judge(DAY + 10**9, DAY + 50, [DAY + 60], NEWEST) == (DAY + 50, Culprit.BEFORE)


def test_no_timestamp_is_beyond_what_a_date_can_tell() -> None:
    settled, found = judged([(1 << 64) - 3, (1 << 64) - 2, (1 << 64) - 1])
    assert max(settled) <= LATEST_US
    assert found


@pytest.mark.parametrize("ahead", [0, JUMP_US])
def test_the_last_one_is_measured_by_the_clock(ahead: int) -> None:
    assert judge(DAY, NEWEST + ahead, [], NEWEST).damaged is Culprit.NONE
    assert judge(DAY, NEWEST + JUMP_US + 1, [], NEWEST) == (DAY + 1, Culprit.THIS)
