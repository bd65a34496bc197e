from typing import Final, final

version: Final[str]
"""The version of arcpipe that this is a part of."""

@final
class LineReader:
    """Read the plain lines of a body in line protocol, and gather their rows by shape.

    A line is left if it is not certain to be good, or not worth the C code. It is never said what is wrong with it.
    One thread at a time may use a reader. Others run meanwhile.
    """

    def __new__(cls, body: bytes, pairs: bool, low: int, high: int, /) -> LineReader:
        """Make a reader.

        Args:
            pairs: whether backslashes are read in pairs with what follows, as InfluxDB 3 does.
            low, high: the range of a timestamp.
        """

    @property
    def shapes(self) -> int:
        """The shapes of the lines that were kept since the last `take`."""

    @property
    def is_left(self) -> bool:
        """Whether the line where `read` has stopped is left."""

    @property
    def is_full(self) -> bool:
        """Whether `read` goes on only after a `take`."""

    def read(self, start: int, stop: int, /) -> int:
        """Read the lines that begin at `start` or after it, and before `stop`: the offset after the last of them.

        It is below `stop` where a line is left, the reader is full, or the call would have taken more than some 2 ms.

        Raises:
            MemoryError: there is none; the reader must not be used any more.
        """

    def take(self, alone: bool, /) -> tuple[bytes, int, int]:
        """Return the rows since the last call as columnar maps, one after the other, and the numbers of maps and rows.

        Args:
            alone: have the header of an array before them, if there are several.

        Raises:
            MemoryError: as `read`.
        """
