"""Progress on stderr: a changing line in a terminal, otherwise a line per run; with the time that is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from rich.console import Console

# Seconds of a run besides its load (start, drain, the disk alone), until the first run has ended.
_FIRST_GUESS_SECONDS: Final = 8.0

Status = Callable[[str], None]


class PlannedRun(NamedTuple):
    """A run to come."""

    case: str
    load_seconds: float  # with warm-up


class Progress:
    """Follows suites in their order, and the runs of each in any order."""

    def __init__(self, suites: Sequence[Sequence[PlannedRun]]) -> None:
        """Begin with the planned runs of each suite."""
        self._console = Console(stderr=True, highlight=False)
        self._left = [list(suite) for suite in suites]
        self._suites = len(self._left)
        # Seconds of runs besides their load: of all runs, and of the last one of each case of the present suite.
        self._besides: list[float] = []
        self._besides_by_case: dict[str, float] = {}

    @property
    def seconds_left(self) -> float:
        """Estimated time until the end of all suites.

        A run takes its load and a remainder. The remainder is that of its case in the last round, or the median of all
        runs if the case has not run yet.
        """
        usual = statistics.median(self._besides) if self._besides else _FIRST_GUESS_SECONDS
        present = sum(run.load_seconds + self._besides_by_case.get(run.case, usual) for run in self._left[0])
        return present + sum(run.load_seconds + usual for suite in self._left[1:] for run in suite)

    @contextmanager
    def suite(self) -> Iterator[None]:
        """Enter the next suite."""
        self._besides_by_case.clear()
        try:
            yield
        finally:
            if len(self._left) > 1:
                self._left.pop(0)

    @contextmanager
    def run(self, label: str, case: str) -> Iterator[Status]:
        """Enter a run of the present suite; yield a function that shows its state."""
        started = time.monotonic()
        if self._console.is_terminal:
            label = f"{self._place()}{label}"
            with self._console.status(label) as shown:
                yield lambda text: shown.update(f"{label}: {text}")
        else:
            yield lambda text: None
        self.count(case, time.monotonic() - started)

    def count(self, case: str, seconds: float) -> None:
        """Count a run of a case that took `seconds`."""
        run = next(run for run in self._left[0] if run.case == case)
        self._left[0].remove(run)
        self._besides_by_case[case] = seconds - run.load_seconds
        self._besides.append(seconds - run.load_seconds)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(f"{self._place()}{text}", markup=False, soft_wrap=True)

    def _place(self) -> str:
        number = self._suites - len(self._left) + 1
        return f"[suite {number} of {self._suites}, {_minutes(self.seconds_left)} left] "


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
