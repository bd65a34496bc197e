from collections.abc import Callable
from typing import Any, Final, final

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

@final
class Outline:
    """Cut request heads that are the same but for the digits of the length, and a bare idempotency key.

    A head is left to the same outline in Python if a value is not plain. One thread at a time may use an outline.
    """

    def __new__(cls, by_python: Any, front: bytes, middle: bytes | None, back: bytes, key_is_first: bool, /) -> Outline:
        """Make an outline.

        Args:
            by_python: what cuts all other heads. It has the attribute `head` and the method `cut`.
            front, middle, back: the pieces around the values. Without a key there is no middle one.
            key_is_first: whether the key is before the length.
        """

    @property
    def head(self) -> Any:
        """That of the outline in Python."""

    def cut(self, data: bytes, start: int, /) -> tuple[int, int, bytes, bytes] | None:
        """Cut a head that begins at `start`: its end, the length of the body, the key, and no id.

        Returns:
            None if the head has another outline; else what the outline in Python says of all that is not plain.
        """

@final
class RecentKeys:
    """The keys that one worker wrote last, in two generations: as the class of this name in Python.

    Claims are no objects of Python here: each takes some 60 bytes, and those of the key and of what it belongs to. For
    one event loop.
    """

    def __new__(cls, window_seconds: float, limit: int, crc32: Callable[[Any, int], int], /) -> RecentKeys:
        """Begin with nothing.

        Args:
            window_seconds: the most that a key is known for.
            limit: the most keys that are known.
            crc32: makes the checksums of long bodies.
        """

    @property
    def claimed(self) -> int:
        """The number of the last claim."""

    @property
    def settled(self) -> int:
        """The number of the last claim that is on disk or forgotten, as all before it are; the others wait."""

    def claim(
        self, owner: bytes, key: bytes, body: bytes | memoryview, now: float, front: bytes = b"", /
    ) -> int | None:
        """Claim a key for a request that is to be written.

        Returns:
            The number of the claim. None if an earlier request had this key and is on disk.

        Raises:
            MemoryError: there is none; nothing is claimed.
        """

    def earlier(self, owner: bytes, key: bytes, /) -> tuple[int, int, int]:
        """Return the claim of the earlier request, right after `claim` has told that there is one."""

    def settle(self, number: int, /) -> int:
        """Note that the claims up to a number are on disk, but for those that were forgotten: how many they are."""

    def forget(self, numbers: list[int], /) -> None:
        """Forget claims whose requests were not written, before any later one is settled."""

def join_entry(prefix: bytes, crc: int, front: bytes, body: bytes | memoryview, timestamp_us: int, /) -> bytes:
    """Pack an entry of the WAL in one piece: header, prefix, front and body.

    For small ones, because other threads do not run meanwhile.

    Args:
        crc: the CRC32 of the prefix.
        front: the bytes between prefix and body.
        timestamp_us: µs since the epoch.

    Raises:
        OverflowError: the entry would be 4 GB or larger.
        MemoryError: there is none.
    """

def find_columns(payload: bytes | memoryview, literals: tuple[bytes, ...], /) -> tuple[int, bytes] | None:
    """Find the columns of an entry by the bytes around them.

    Args:
        literals: the bytes before the first column, between columns, and after the last one.

    Returns:
        The number of rows, and where each column begins and ends in the payload: two numbers of 64 bits each, in the
        order of the machine. None if the payload is anything but the literals and, between them, arrays of flat values
        that all have the same number of them, at least one.
    """

def walk_columns(data: bytes, start: int, columns: int, /) -> tuple[tuple[bytes, ...], int, int, int, int, int] | None:
    """Find the columns of a map, whose first name is at `start`.

    Returns:
        Their names, the number of rows, and the offset after the map; then, for the column `time`, the offsets of its
        first value and after its last one, both 0 without that column, and the size of each value if all have the same
        first byte, which tells it, else 0. None if the bytes are anything but short names of printable ASCII, each with
        an array of flat values, of which all have the same number, at least one; or if there are more than 256 columns,
        or more than 1 MB. A name may be there twice.
    """

def gather_rows(
    data: bytes, start: int, count: int, /
) -> tuple[int, int, tuple[tuple[bytes, int, int, int, int], ...]] | None:
    """Gather rows in MessagePack into columnar maps by shape: measurement, and keys in their order.

    Args:
        start: the offset of the first row.
        count: the most rows that are read. Those that begin after 128 KB are not.

    Returns:
        The number of rows, the offset after them, and their shapes in the order in which they came first: the map, its
        rows, and the offsets in it of its first time and after its last one, both 0 without times, and the size of each
        if all have the same first byte, which tells it, else 0. Times are not checked.
        None if one of the rows is anything but a map of `m`, `tags`, `fields`, `t` and `h`, with flat values, and with
        names of at most 255 bytes of printable ASCII that differ; if `h` is no text; if rows of one shape have their
        names in different orders; or if there are more than 4096 shapes, or 256 values in a row.

    Raises:
        MemoryError: there is none.
    """

def key_records(names: Any, data: Any, seconds: Any, starts: Any, sizes: Any, /) -> bytes:
    """Make the records of entries with idempotency keys, as `arcpipe.upload.key_files` keeps them.

    Args:
        names: what is hashed of each entry, all of one size.
        data: a buffer with the entries' bodies.
        seconds: of their timestamps, in 32 bits each.
        starts: where each body begins in `data`, in 64 bits.
        sizes: the bytes of each body, in 64 bits.

    Raises:
        ValueError: there are not as many of each, or a body is not within the data.
    """

def array_headers(arrays: tuple[Any, ...], counts: Any, /) -> int:
    """Return how many bytes the headers of arrays have, if all have the shortest ones, of one width; else 0.

    Args:
        arrays: buffers.
        counts: the number of values that each should have, as a buffer of 32 bits each.
    """

def read_column(
    pieces: tuple[tuple[tuple[Any, ...], tuple[bytes, ...] | None, int, Any], ...],
    wanted: int,
    bounds: tuple[int, int, int, int, int, int],
    /,
) -> tuple[int, bytes, bytes, int, Any] | tuple[()] | None:
    """Read all values of a column. The bytes must not change meanwhile: other threads run if they are many.

    Args:
        pieces: (buffers, places, number, counts), as `arcpipe.codec.arrow.by_kernel` describes them.
        wanted: the kind: 0 any, 1 floats, 2 integers, 3 texts.
        bounds: the values from which on texts get a dictionary; those of a sample; most words, and their bytes; the
            buffers from which on those of texts are compared with one another, and their values.

    Returns:
        (kind, values, validity bits, number of nils, more). By kind, the values and more are: floats, and whether one
        is a number (1); integers, with the least and the greatest (2); offsets of texts, and their bytes (3); the
        numbers of words, and (number, offsets, bytes) of these (4). The bits are empty if there is no nil.
        None if the column is left; an empty tuple if many buffers may be alike, and are for Python to compare.

    Raises:
        ValueError: a piece has no such places, or another number of values than it says.
        MemoryError: there is none.
    """
