"""Problems of single tables in a look through many: one that somebody else has changed must not hold up others.

    problems = Problems()
    for table in tables:
        with problems.of_one_table():
            ...
    problems.raise_first()

A table whose metadata is gone fails at once, and so may many in a row. A catalogue that does not answer takes its time
for each of them, and the look is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from arcpipe.tables.base import Older, TableError, Unavailable

# Spent in a row on tables that do not answer: then it is the catalogue or the store, and not the tables.
_LOST_SECONDS: Final = 60.0


class Problems:
    """The problems of one look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: TableError | None = None
        self._tables = 0
        self._began = 0.0
        self._lost_seconds = 0.0  # in a row

    @contextmanager
    def of_one_table(self) -> Iterator[None]:
        """Keep what the look at one table raises.

        Raises:
            Unavailable: tables in a row that did not answer took too long.
            Older: it concerns all tables.
        """
        self._began = self._clock()
        try:
            yield
        except Older:
            raise
        except TableError as error:
            self._first = self._first or error
            self._tables += 1
            if not isinstance(error, Unavailable):
                self._lost_seconds = 0.0
                return
            self._lost_seconds += self._clock() - self._began
            if self._lost_seconds > _LOST_SECONDS:
                raise
        else:
            self._lost_seconds = 0.0

    def note_answer(self) -> None:
        """Note that the table has answered. What is done with the answer is no time that was lost."""
        self._began = self._clock()
        self._lost_seconds = 0.0

    def raise_first(self) -> None:
        """Raise the first problem, if there was one, once all tables were looked at."""
        if self._first is not None:
            others = f" (and {self._tables - 1} other tables)" if self._tables > 1 else ""
            raise type(self._first)(f"{self._first}{others}") from self._first
