"""The cost of a body beyond its bytes: count its shapes and bad lines, and let others run meanwhile.

The caller of an encoder passes `check`. The encoder calls it about once a millisecond, between two bounded steps.
`check` may do other work, or end the encoding by an exception of its own. A format whose steps may be long whatever the
size of the body tells how long the next one will take, and one that may take much more memory than the body tells that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.units import MB

# Shapes (measurement, tags, fields and their types) that any body may have. A new one takes some 30 µs and becomes a
# columnar map of its own; a row of a known one takes 3 µs at most.
FREE_SHAPES: Final = 4096
# Bytes of a body for each further shape.
BYTES_PER_SHAPE: Final = 256
# Bad lines that any body may have. Each takes some 10 µs.
FREE_BAD_LINES: Final = 4096
# Bytes of a body for each further bad line.
BYTES_PER_BAD_LINE: Final = 32


# Bytes that a body may have as columns, whatever its size, and for each of its bytes: a text that many records share is
# repeated in each. And the most for any body.
FREE_GROWTH_BYTES: Final = 64 * MB
GROWTH: Final = 4
MOST_GROWTH_BYTES: Final = 1024 * MB


class Check(Protocol):
    """Called between two steps of an encoder."""

    def __call__(self, seconds: float = 0.0, taken_bytes: int = 0, /) -> None:
        """Do other work.

        Args:
            seconds: that the next step will take, if that is not little.
            taken_bytes: of memory beyond the body that the encoder will hold from now on, if they are many.
        """


def go_on(_seconds: float = 0.0, _taken_bytes: int = 0, /) -> None:
    """Do nothing: the `check` of a caller that has no other work."""


class Effort:
    """Count the shapes and bad lines of one body."""

    __slots__ = ("_bad_lines", "_shapes", "_size", "check")

    def __init__(self, size_bytes: int, check: Callable[[], None]) -> None:
        self.check = check
        self._size = size_bytes
        self._shapes = FREE_SHAPES + size_bytes // BYTES_PER_SHAPE
        self._bad_lines = FREE_BAD_LINES + size_bytes // BYTES_PER_BAD_LINE

    def add_shape(self, weight: int = 1) -> None:
        """Count a shape that is new in the body, or was forgotten.

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
        """Count a bad line.

        Raises:
            BadPayload: the body has too many for its size.
        """
        self._bad_lines -= 1
        if self._bad_lines < 0:
            most = FREE_BAD_LINES + self._size // BYTES_PER_BAD_LINE
            raise BadPayload(f"the body has more than {most} bad lines; nothing was written")
        self.check()


class Growth:
    """Count the bytes that texts take where many records share them."""

    __slots__ = ("_check", "_left", "_most", "_size")

    def __init__(self, size_bytes: int, check: Check) -> None:
        self._check = check
        self._size = size_bytes
        self._most = self._left = min(max(FREE_GROWTH_BYTES, GROWTH * size_bytes), MOST_GROWTH_BYTES)

    def add(self, size_bytes: int) -> None:
        """Count bytes before they are made.

        Raises:
            PayloadTooLarge: they are too many for the body.
        """
        self._left -= size_bytes
        if self._left < 0:
            raise PayloadTooLarge(
                f"texts that many records share would take more than {self._most // MB} MB, too many for the "
                f"{self._size} bytes of the body; send it in parts, or with shorter attributes"
            )
        self._check(0.0, self._most - self._left)
