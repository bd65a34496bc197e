"""Line protocol by the native kernel: it reads the plain lines, and leaves all others to the line reader.

So errors, their line numbers and reasons are those of the line reader, and a line that the kernel does not take costs
what it costs there. Shapes are counted as the line reader counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arcpipe.codec.columns import Encoded, Maps
from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.by_line import LineReader
from arcpipe.codec.line_protocol.grammar import Escapes, Unit
from arcpipe.codec.time_units import MAX_NS, MIN_NS
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe_native import LineReader as Kernel

STEP_BYTES: Final = 256 * KB
"""Bytes of lines that are gathered at a time, and read in one call: usually less than half a millisecond."""


def kernel_of(body: bytes, escapes: Escapes, unit: Unit | None, kind: type[Kernel]) -> Kernel:
    """Make a kernel for a body."""
    low, high = (MIN_NS, MAX_NS) if unit is None else (unit.low, unit.high)
    return kind(body, escapes == "v3", low, high)


def read_whole(kernel: Kernel, size: int) -> tuple[Encoded | None, int]:
    """Read a body of `STEP_BYTES` at most, if all of its lines are plain: its columnar maps, and its size.

    Returns an offset below the size if they are not: `KernelReader` has to go on from there.
    """
    pos = kernel.read(0, size)
    if pos < size:
        return None, pos
    packed, maps, records = kernel.take(True)
    return Encoded(maps > 1, packed, records) if maps else None, size


class KernelReader:
    """Read the lines of a body in their order, each by the kernel or by the line reader, which both add to `maps`."""

    def __init__(
        self, body: bytes, kernel: Kernel, others: LineReader, effort: Effort, maps: Maps, step_bytes: int
    ) -> None:
        self._body = body
        self._kernel = kernel
        self._others = others
        self._effort = effort
        self._maps = maps
        self._step_bytes = step_bytes
        self._shapes = 0  # of the kernel, that are counted

    def read(self, pos: int) -> None:
        """Read the lines from `pos` on; the kernel may hold some before it.

        Raises:
            PayloadTooLarge, BadPayload: there are too many shapes or bad lines.
        """
        body, kernel, size = self._body, self._kernel, len(self._body)
        start = 0  # of what is gathered
        while True:
            self._count_shapes()
            if kernel.is_left:
                pos = self._others.read(pos, body.find(b"\n", pos) + 1 or size)
            if pos >= size:
                break
            if kernel.is_full or pos >= start + self._step_bytes:
                self._flush()
                start = pos
            pos = kernel.read(pos, min(start + self._step_bytes, size))
        self._flush()

    def _count_shapes(self) -> None:
        found = self._kernel.shapes
        self._effort.add_shape(found - self._shapes)
        self._shapes = found

    def _flush(self) -> None:
        packed, maps, records = self._kernel.take(False)
        self._shapes = 0
        if maps:
            self._maps.add(packed, records, maps)
        self._others.flush()
