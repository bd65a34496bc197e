"""A body of lines -> columnar maps: by the native kernel, by column or by line, whichever is there and fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.codec.columns import Encoded, Maps
from arcpipe.codec.effort import Check, Effort, go_on
from arcpipe.codec.line_protocol.bad_lines import BadLineReport, LineError
from arcpipe.codec.line_protocol.by_column import read_piece
from arcpipe.codec.line_protocol.by_kernel import STEP_BYTES, KernelReader, kernel_of, read_whole
from arcpipe.codec.line_protocol.by_line import LineReader
from arcpipe.codec.line_protocol.grammar import Escapes, Unit
from arcpipe.native import KERNEL
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe_native import LineReader as Kernel

CHUNK_BYTES: Final = 256 * KB
"""Bytes of lines that are gathered into columns at a time: Python's objects are larger than their text."""

# Sizes from which on reading by column pays, as `benchmarks.micro.line_protocol` measures it: some 25 lines of one
# shape, which are 4 KB, and 120 lines of Telegraf's 16 shapes, which are 30 KB with 24 lines of the first shape.
FEW_BYTES: Final = 4 * KB  # a smaller body is read by line
MANY_BYTES: Final = 32 * KB  # a body of this size is read by column
MANY_LINES: Final = 24  # lines of the first measurement from which on a body of a size in between is read by column

LINE_KERNEL: Final[type[Kernel] | None] = None if KERNEL is None else KERNEL.LineReader


class Lines(NamedTuple):
    """The good lines of a body, and its bad ones."""

    encoded: Encoded | None  # None if there is no good line
    errors: list[LineError]  # the first `MAX_ERRORS` bad lines, in order
    more_errors: int  # the number of other bad lines


def encode(body: bytes, check: Check = go_on, *, escapes: Escapes = "v1", unit: Unit | None = None) -> Lines:
    """Make the lines of a body columnar maps.

    Args:
        check: as in `arcpipe.codec.effort`.
        escapes: whose escapes it has.
        unit: that of its timestamps; None if any number of 64 bits is one.

    Raises:
        PayloadTooLarge: the body has too many shapes for its size.
        BadPayload: the body has too many bad lines for its size.
    """
    if LINE_KERNEL is not None:
        return encode_by_kernel(body, check, escapes=escapes, unit=unit, kind=LINE_KERNEL)
    size = len(body)
    if size < FEW_BYTES or (size < MANY_BYTES and _count_alike(body) < MANY_LINES):
        return encode_by_line(body, check, escapes=escapes, unit=unit)
    return encode_by_column(body, check, escapes=escapes, unit=unit)


def _count_alike(body: bytes) -> int:
    """Count the lines that seem to be of the first line's measurement."""
    measurement = body[: body.find(b" ", 0, FEW_BYTES) + 1].partition(b",")[0]
    return 1 + body.count(b"\n" + measurement)


def encode_by_kernel(
    body: bytes,
    check: Check = go_on,
    *,
    escapes: Escapes = "v1",
    unit: Unit | None = None,
    kind: type[Kernel],
    step_bytes: int = STEP_BYTES,
) -> Lines:
    """Do as `encode`, by a kernel of this kind where lines allow it."""
    check()
    kernel = kernel_of(body, escapes, unit, kind)
    pos = 0
    if len(body) <= step_bytes:
        encoded, pos = read_whole(kernel, len(body))
        if pos == len(body):
            return Lines(encoded, [], 0)
    report = BadLineReport(body)
    maps = Maps()
    effort = Effort(len(body), check)
    others = LineReader(body, report, effort, maps, escapes, unit, check)
    KernelReader(body, kernel, others, effort, maps, step_bytes).read(pos)
    return Lines(maps.encoded(), report.errors, report.more_errors)


def encode_by_line(body: bytes, check: Check = go_on, *, escapes: Escapes = "v1", unit: Unit | None = None) -> Lines:
    """Do as `encode`, line by line."""
    report = BadLineReport(body)
    maps = Maps()
    reader = LineReader(body, report, Effort(len(body), check), maps, escapes, unit, check)
    pos = 0
    while pos < len(body):
        pos = reader.read(pos, body.find(b"\n", pos + CHUNK_BYTES) + 1 or len(body))
        reader.flush()
    return Lines(maps.encoded(), report.errors, report.more_errors)


def encode_by_column(body: bytes, check: Check = go_on, *, escapes: Escapes = "v1", unit: Unit | None = None) -> Lines:
    """Do as `encode`, by column where lines allow it."""
    report = BadLineReport(body)
    maps = Maps()
    effort = Effort(len(body), check)
    reader = LineReader(body, report, effort, maps, escapes, unit, check)
    pos = 0
    while pos < len(body):
        end = len(body) if len(body) - pos <= CHUNK_BYTES else body.rfind(b"\n", pos, pos + CHUNK_BYTES) + 1
        if end:
            pos = read_piece(body, pos, end, reader, effort, maps, escapes, unit)
        else:
            pos = reader.read(pos, body.find(b"\n", pos) + 1 or len(body))
        reader.flush()
    return Lines(maps.encoded(), report.errors, report.more_errors)
