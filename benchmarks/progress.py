"""What goes on, on stderr: a line that changes in a terminal, a line per run elsewhere; and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console

# What a run takes besides its load (start, drain, the disk alone), until runs have shown it.
_FIRST_GUESS_SECONDS: Final = 8.0

Status = Callable[[str], None]


class Progress:
    """Follows runs in the order in which they come."""

    def __init__(self, load_seconds: Sequence[Sequence[float]]) -> None:
        """Args: load_seconds: of each run of each suite, warm-up included."""
        self._console = Console(stderr=True, highlight=False)
        self._left = [list(suite) for suite in load_seconds]
        self._suites = len(self._left)
        self._besides = 0.0  # seconds that the runs so far took besides their load
        self._runs = 0

    @property
    def seconds_left(self) -> float:
        """Until all suites are over, if other runs take as long besides their load as those so far."""
        besides = self._besides / self._runs if self._runs else _FIRST_GUESS_SECONDS
        return sum(seconds + besides for suite in self._left for seconds in suite)

    @contextmanager
    def suite(self) -> Iterator[None]:
        """The next one."""
        yield
        self._left.pop(0)

    @contextmanager
    def run(self, label: str) -> Iterator[Status]:
        """The next run: a function that shows how far it is."""
        label = f"{self._place()}{label}"
        started = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(label) as shown:
                yield lambda text: shown.update(f"{label}: {text}")
        else:
            yield lambda text: None
        self.count(time.monotonic() - started)

    def count(self, seconds: float) -> None:
        """A run is over, which took so long."""
        self._besides += seconds - self._left[0].pop(0)
        self._runs += 1

    def line(self, text: str) -> None:
        """What is to stay."""
        self._console.print(f"{self._place()}{text}", markup=False, soft_wrap=True)

    def _place(self) -> str:
        number = self._suites - len(self._left) + 1
        return f"[suite {number} of {self._suites}, {_minutes(self.seconds_left)} left] "


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
