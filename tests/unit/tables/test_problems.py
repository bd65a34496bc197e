"""When a look through many tables goes on, and when it ends."""

from __future__ import annotations

import pytest

from arcpipe.tables.base import Older, Refused, Unavailable
from arcpipe.tables.problems import Problems


class Clock:
    """A clock that a test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(problems: Problems, clock: Clock, seconds: float, error: Exception) -> None:
    with problems.of_one_table():
        clock.now += seconds
        raise error


def test_tables_that_fail_at_once_do_not_end_the_look(clock: Clock) -> None:
    problems = Problems(clock)
    for number in range(100):
        fail(problems, clock, 0.01, Unavailable(f"table {number}"))
    with pytest.raises(Unavailable, match=r"table 0 \(and 99 other tables\)"):
        problems.raise_first()


def test_a_catalogue_that_does_not_answer_ends_the_look(clock: Clock) -> None:
    problems = Problems(clock)
    fail(problems, clock, 50.0, Unavailable("no answer"))
    with pytest.raises(Unavailable):
        fail(problems, clock, 50.0, Unavailable("no answer"))


@pytest.mark.parametrize("error", [None, Refused("its format is another one")])
def test_an_answer_of_the_catalogue_ends_the_row(clock: Clock, error: Refused | None) -> None:
    problems = Problems(clock)
    for _ in range(3):
        fail(problems, clock, 50.0, Unavailable("no answer"))
        with problems.of_one_table():
            clock.now += 50.0
            if error is not None:
                raise error


def test_work_between_two_answers_is_no_time_that_was_lost(clock: Clock) -> None:
    problems = Problems(clock)
    fail(problems, clock, 50.0, Unavailable("no answer"))
    with problems.of_one_table():
        problems.note_answer()
        clock.now += 3_600.0  # a merge, or deletes
        problems.note_answer()
        clock.now += 10.0
        raise Unavailable("no answer")


def test_what_concerns_all_tables_ends_the_look(clock: Clock) -> None:
    with pytest.raises(Older):
        fail(Problems(clock), clock, 0.0, Older("the catalogue was restored"))
