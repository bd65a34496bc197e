"""The native kernel, built from its source, gives the rows and errors of the line reader, whatever the body."""

from __future__ import annotations

import ctypes
import math
import random
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.columns import MAX_NAME_BYTES
from arcpipe.codec.effort import FREE_SHAPES
from arcpipe.codec.line_protocol.body import Lines, encode_by_kernel, encode_by_line
from arcpipe.codec.line_protocol.grammar import ESCAPINGS, UNITS, Escapes, Unit
from arcpipe.errors import BadPayload, PayloadTooLarge
from benchmarks.load.bodies import KINDS
from tests.support.kernel import build, by_kernel, line_reader, load
from tests.support.program import ROOT
from tests.unit.codec.line_protocol.test_body import LARGE, VALID, bodies, rows_of, typed

MAX = (1 << 63) - 1
STEPS = (1, 100, 1 << 18)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    """Skip all of this where no kernel can be built."""
    line_reader()


def same(body: bytes, escapes: Escapes = "v1", unit: Unit | None = None, step_bytes: int = STEPS[-1]) -> Lines:
    """Read a body by the kernel: the same as by line."""
    found = by_kernel(body, escapes=escapes, unit=unit, step_bytes=step_bytes)
    wanted = encode_by_line(body, escapes=escapes, unit=unit)
    assert typed(rows_of(found.encoded)) == typed(rows_of(wanted.encoded))
    assert found[1:] == wanted[1:]
    return found


def are_plain(body: bytes, escapes: Escapes = "v1") -> bool:
    """Tell whether the kernel takes a whole body and leaves nothing to Python."""
    kernel = line_reader()(body, escapes == "v3", -MAX - 1, MAX)
    pos = 0
    while pos < len(body) and not kernel.is_left:
        pos = kernel.read(pos, len(body))
    return pos == len(body)


@pytest.mark.slow
@given(bodies(), st.sampled_from(sorted(ESCAPINGS)), st.sampled_from([None, *UNITS.values()]), st.sampled_from(STEPS))
def test_rows_and_errors_are_those_of_the_line_reader(body: bytes, escapes: Escapes, unit: Unit, step: int) -> None:
    same(body, escapes, unit, step)


@given(
    st.binary(max_size=200) | st.text('m,= \n"\\ft1i.eu-#\r\tü', max_size=200).map(str.encode), st.sampled_from(STEPS)
)
def test_any_bytes_are_the_same_lines_or_errors(body: bytes, step: int) -> None:
    for escapes in ESCAPINGS:
        same(body, escapes, step_bytes=step)


DAMAGE = [b"", b",", b"=", b" ", b'"', b"\\", b"\n", b"\r", b"i", b"9" * 20, b"\xff", b"\x00", b"\xc3\xbc"]


@pytest.mark.parametrize("kind", ["line protocol", "telegraf"])
def test_damaged_bodies_of_real_senders_are_the_same(kind: str) -> None:
    source = random.Random(kind)
    for _ in range(40):
        body = KINDS[kind](source.choice([1, 20]), source).at(1_700_000_000_000_000)
        assert are_plain(body)
        for _ in range(source.choice([1, 1, 5])):
            at = source.randrange(len(body))
            body = body[:at] + source.choice(DAMAGE) + body[at + source.choice([0, 1, 2]) :]
        same(body, step_bytes=source.choice(STEPS))


ALIKE = [
    b"m f=1",
    b'cpu,host=server-17,region=eu usage=84.74337369372327,n=-12i,u=3u,ok=t,name="a b" 1699999999001000000',
    b'a\\ measurement,a\\,tag=b\\ c f\\ 1=0.1,a_field_with_a_long_name="a \\"b\\"",h=1e5 \t-5 ',
    'm,ü=ö,tag=0123456789abcdef é=3.0589983033553536,g="ß",h=TRUE 1699999999001000001\r'.encode(),
]
EDITED = [*DAMAGE, b"-", b".", b"0", b"e", b"\t", b"a"]
EDIT = st.tuples(st.integers(0, 120), st.integers(0, 2), st.sampled_from(EDITED))


@pytest.mark.parametrize("flags", [(), ("-DARCPIPE_PORTABLE",)])
@given(st.sampled_from(ALIKE), st.lists(EDIT, max_size=8), st.sampled_from(sorted(ESCAPINGS)), st.sampled_from(STEPS))
def test_lines_that_are_nearly_alike_are_the_same(
    flags: tuple[str, ...], line: bytes, edits: list[tuple[int, int, bytes]], escapes: Escapes, step: int
) -> None:
    """The keys and types of a line are expected in the next one, and a longer line follows the last edit."""
    lines = [line]
    for at, dropped, put in edits:
        lines += [line[: at % len(line)] + put + line[at % len(line) + dropped :], line]
    for body in (b"\n".join(lines), b"\n".join([*lines, max(ALIKE, key=len), b""])):
        found = encode_by_kernel(body, escapes=escapes, kind=line_reader(*flags), step_bytes=step)
        wanted = encode_by_line(body, escapes=escapes)
        assert typed(rows_of(found.encoded)) == typed(rows_of(wanted.encoded))
        assert found[1:] == wanted[1:]


def test_what_is_valid_is_left_to_nobody() -> None:
    """Of the reference's lines, the line reader gets those that are rare: too many digits, a field twice."""
    left = [line for line, _ in VALID if not are_plain(line.encode())]
    assert len(left) <= len(VALID) // 10, left


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_whole_bodies_of_any_shapes_are_plain(ending: bytes) -> None:
    lines = [b'm%d,h=a%d f%d=%d.5,g=7i,u=7u,b=t,s="x" %d' % ((number,) * 5) for number in range(300)]
    lines += [b"# comment", b"", b" \t", b"m,time_x=1,h=a\\ b h=1,time=2", b'm f="a \\"b\\", \\\\\nc=d"']
    for count in (1, 3):
        body = ending.join(lines * count)
        assert are_plain(body)
        assert same(body).errors == []


def test_names_at_the_edge_of_what_is_allowed_are_the_same() -> None:
    names = ["a" * MAX_NAME_BYTES, "a" * (MAX_NAME_BYTES + 1), "ü" * (MAX_NAME_BYTES // 2), "a\\ " * 128, "a\\ " * 129]
    names += ["\x7f", "\x80", "\x9f", "\xa0", "a\x1f", "time", "time_field", "t", "t_field", '\\"', "\\\\", "a\\"]
    for name in names:
        for escapes in ESCAPINGS:
            same(f"{name},t=x f=1\nm,{name}=x f=1\nm,t=x {name}=1,time=2,t=3\n".encode(), escapes)
            same(f"m,t=x {name}=1,{name}=2\nm,{name}=1,{name}=2 f=1\nm,{name}=x {name}=1\n".encode(), escapes)


def numbers(source: random.Random) -> Iterator[str]:
    """Yield spellings of floats: those of Python, long ones, and those right between two floats and beside."""
    for _ in range(1500):
        bits = source.getrandbits(64)
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        if math.isfinite(value):
            yield repr(value)
            yield f"{value:.{source.randrange(25)}e}"
        yield f"{source.getrandbits(source.randrange(1, 70))}e{source.randrange(-80, 80)}"
        yield f"{source.uniform(-1e6, 1e6):.{source.randrange(20)}f}"
        yield repr(source.uniform(-100, 100))
        near = source.uniform(0.1, 1e15)
        middle = Fraction(near) + Fraction(math.ulp(near)) / 2
        digits = str(middle.numerator * 10**60 // middle.denominator)
        yield f"{digits[:-60]}.{digits[-60:].rstrip('0')}"
        yield f"{digits[:-60]}.{digits[-60:].rstrip('0')}1"
    yield from ("-0", "-0.0", "0e99", "5e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "1e-400")
    yield from ("2.2250738585072011e-308", "1.7976931348623157e308", "9007199254740993", "9007199254740992.5")
    yield from ("007", ".5", "5.")


def test_floats_are_those_of_python_to_the_bit() -> None:
    texts = [text for text in numbers(random.Random(24)) if math.isfinite(float(text)) and len(text) <= 128]
    body = "".join(f"m f={text}\n" for text in texts).encode()
    kernel = line_reader()(body, False, 0, 0)
    pos = 0
    while pos < len(body):
        pos = kernel.read(pos, len(body))
        assert not kernel.is_left, body[pos : pos + 200]
    values = msgpack.unpackb(kernel.take(True)[0])["columns"]["f"]
    wrong = [
        (text, value)
        for text, value in zip(texts, values, strict=True)
        if struct.pack("<d", float(text)) != struct.pack("<d", value)
    ]
    assert wrong == []


def test_slow_numbers_and_shapes_end_a_step_early() -> None:
    for line in (b"m f=1e-300\n" * 20_000, b"".join(b"m a=1,b=2,c=3,f%d=1\n" % n for n in range(4000))):
        kernel = line_reader()(line, False, 0, 0)
        assert 0 < kernel.read(0, len(line)) < len(line)
        assert not kernel.is_left
        assert by_kernel(line).encoded == by_kernel(line).encoded is not None


@pytest.mark.parametrize("name", LARGE)
def test_large_odd_bodies_are_the_same_or_refused_alike(name: str) -> None:
    body = LARGE[name][:100_000]
    outcomes: list[tuple[object, ...]] = []
    for path in (encode_by_line, by_kernel):
        try:
            found = path(body)
        except (BadPayload, PayloadTooLarge) as error:
            outcomes.append((str(error),))
        else:
            outcomes.append((typed(rows_of(found.encoded)), *found[1:]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
def test_shapes_are_counted_as_the_line_reader_counts_them() -> None:
    body = b"".join(b"m f%04x=1\n" % number for number in range(2 * FREE_SHAPES))
    with pytest.raises(PayloadTooLarge, match=f"more than {FREE_SHAPES + len(body) // 256} shapes"):
        by_kernel(body)
    twice = b"".join(b"m f%04x=1,f%04x=2\n" % (number, number) for number in range(FREE_SHAPES))
    assert same(twice).encoded is not None  # the kernel leaves a field that is there twice
    few = b"".join(b"m f%04x=1\n" % number for number in range(FREE_SHAPES))
    assert same(few * 2).encoded is not None


def test_a_reader_refuses_places_beside_the_body() -> None:
    kernel = line_reader()(b"m f=1\n", False, 0, 0)
    for start, stop in ((-1, 3), (3, 2), (0, 7), (8, 9)):
        with pytest.raises(ValueError, match="no places of the body"):
            kernel.read(start, stop)
    with pytest.raises(TypeError):
        line_reader()(bytearray(b"m f=1\n"), False, 0, 0)  # type: ignore[arg-type]
    assert kernel.read(0, 6) == 6
    assert kernel.take(True)[1:] == (1, 1)
    assert kernel.take(True) == (b"\x90", 0, 0)


def test_only_one_thread_at_a_time_uses_a_reader() -> None:
    body = b"m,t=x f=1.5,g=7i\n" * 200_000
    kernel = line_reader()(body, False, 0, 0)
    outcomes: list[object] = []

    def read() -> None:
        try:
            outcomes.append(kernel.read(0, len(body)))
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if outcome == "this LineReader is in use by another thread"]
    read_by = [outcome for outcome in outcomes if outcome == len(body)]
    assert len(refused) + len(read_by) == 4
    assert kernel.take(True)[2] == 200_000 * len(read_by)


@pytest.mark.slow
def test_whichever_allocation_fails_the_caller_gets_a_memory_error(tmp_path: Path) -> None:
    flags = ("-Dmalloc=failing_malloc", "-Drealloc=failing_realloc", str(ROOT / "tests/support/failing_memory.c"))
    module = build(tmp_path, "-O0", *flags)
    kind = load(module).LineReader
    left = ctypes.c_int.in_dll(ctypes.CDLL(str(module)), "allocations_left")
    wide = ",".join(f"f{number}=1i" for number in range(300))
    body = "".join(f"m\\ {number},t=x f=1,g{number}=2 5\n" for number in range(2000)).encode() + f"m {wide}\n".encode()
    wanted = encode_by_line(body)
    failures = 0
    while True:
        left.value = failures + 1  # the last of them fails
        try:
            found = encode_by_kernel(body, kind=kind)
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            left.value = -1
    assert failures > 10
    assert typed(rows_of(found.encoded)) == typed(rows_of(wanted.encoded))
