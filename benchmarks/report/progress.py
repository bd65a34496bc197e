"""What goes on, on stderr: a line that changes in a terminal, a line per run elsewhere; and how long it will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from rich.console import Console

# What a run takes besides its load (start, drain, the disk alone), until runs have shown it.
_FIRST_GUESS_SECONDS: Final = 8.0

Status = Callable[[str], None]


class PlannedRun(NamedTuple):
    """A run to come."""

    case: str
    load_seconds: float  # warm-up included


class Progress:
    """Follows suites in their order, and the runs of each in any order."""

    def __init__(self, suites: Sequence[Sequence[PlannedRun]]) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._left = [list(suite) for suite in suites]
        self._suites = len(self._left)
        # Seconds that runs took besides their load: of all, and of the present suite by case.
        self._besides: list[float] = []
        self._besides_by_case: dict[str, float] = {}

    @property
    def seconds_left(self) -> float:
        """Until all suites are over: a run takes besides its load what its case took in the round before; a case that
        has not yet run, what runs take in the middle."""
        usual = statistics.median(self._besides) if self._besides else _FIRST_GUESS_SECONDS
        present = sum(run.load_seconds + self._besides_by_case.get(run.case, usual) for run in self._left[0])
        return present + sum(run.load_seconds + usual for suite in self._left[1:] for run in suite)

    @contextmanager
    def suite(self) -> Iterator[None]:
        """The next one."""
        self._besides_by_case.clear()
        try:
            yield
        finally:
            if len(self._left) > 1:
                self._left.pop(0)

    @contextmanager
    def run(self, label: str, case: str) -> Iterator[Status]:
        """A run of the present suite: a function that shows how far it is."""
        started = time.monotonic()
        if self._console.is_terminal:
            label = f"{self._place()}{label}"
            with self._console.status(label) as shown:
                yield lambda text: shown.update(f"{label}: {text}")
        else:
            yield lambda text: None
        self.count(case, time.monotonic() - started)

    def count(self, case: str, seconds: float) -> None:
        """A run is over, which took so long."""
        run = next(run for run in self._left[0] if run.case == case)
        self._left[0].remove(run)
        self._besides_by_case[case] = seconds - run.load_seconds
        self._besides.append(seconds - run.load_seconds)

    def line(self, text: str) -> None:
        """What is to stay."""
        self._console.print(f"{self._place()}{text}", markup=False, soft_wrap=True)

    def _place(self) -> str:
        number = self._suites - len(self._left) + 1
        return f"[suite {number} of {self._suites}, {_minutes(self.seconds_left)} left] "


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
