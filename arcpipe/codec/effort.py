"""What a body costs beyond its bytes: shapes and bad lines are counted, and others are given way to.

Whoever has a body encoded gives `check`, which encoding calls at least once a millisecond or so, between two steps
each of which is bounded. It may do something else meanwhile, or end the encoding by an exception of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arcpipe.errors import BadPayload, PayloadTooLarge

# A shape (measurement, tags, fields and their types) takes some 30 µs and becomes a columnar map of its own, whereas a
# row of a known one takes 3 µs at most. Any body may have this many shapes.
FREE_SHAPES: Final = 4096
# Bytes of a larger body for each shape more.
BYTES_PER_SHAPE: Final = 256
# A bad line takes some 10 µs. Any body may have this many,
FREE_BAD_LINES: Final = 4096
# and a larger one as many more as it has times this many bytes.
BYTES_PER_BAD_LINE: Final = 32


def go_on() -> None:
    """Give way to nobody: the `check` of whoever encodes a body for itself."""


class Effort:
    """Counts what makes one body costly."""

    __slots__ = ("_bad_lines", "_shapes", "_size", "check")

    def __init__(self, size_bytes: int, check: Callable[[], None]) -> None:
        self.check = check
        self._size = size_bytes
        self._shapes = FREE_SHAPES + size_bytes // BYTES_PER_SHAPE
        self._bad_lines = FREE_BAD_LINES + size_bytes // BYTES_PER_BAD_LINE

    def add_shape(self, weight: int = 1) -> None:
        """A shape was found that the body had not before, or not for long.

        Raises:
            PayloadTooLarge: the body has too many for its size.
        """
        self._shapes -= weight
        if self._shapes < 0:
            most = FREE_SHAPES + self._size // BYTES_PER_SHAPE
            raise PayloadTooLarge(
                f"the body has more than {most} shapes (measurement, tags, fields and their types), too many for its "
                f"{self._size} bytes; send it in parts, or with the same fields in each row"
            )
        self.check()

    def take_back(self, shapes: int) -> None:
        """Forget shapes that were added, because they will be added again."""
        self._shapes += shapes

    def add_bad_line(self) -> None:
        """A line was bad.

        Raises:
            BadPayload: the body has too many for its size.
        """
        self._bad_lines -= 1
        if self._bad_lines < 0:
            most = FREE_BAD_LINES + self._size // BYTES_PER_BAD_LINE
            raise BadPayload(f"the body has more than {most} bad lines; nothing was written")
        self.check()
