"""The native kernel reads a column as Python does, to the bit, or leaves it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe import native
from arcpipe.codec.arrow.arrays import DICTIONARY_ROWS, DICTIONARY_VALUES, build
from arcpipe.codec.arrow.by_kernel import Encoded, Plain, read_column
from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.natural import natural_type
from arcpipe.codec.arrow.times import decode_integers, decode_time
from arcpipe.codec.columns import array_header
from arcpipe.errors import BadPayload
from tests.support.kernel import kernel_of_checkout

WANTED = (None, "f64", "i64", "str")
PLACE = struct.Struct("=QQ")
MAX = (1 << 63) - 1


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Iterator[None]:
    """Use the kernel of this checkout; skip all of this where it cannot be built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "KERNEL", kernel_of_checkout())
        yield


Chunk = list[bytes]
"""The encoded values of an entry."""


def pieces_of(chunks: Sequence[Chunk], form: str) -> tuple[Encoded, ...]:
    """The same values in each of the forms in which the kernel takes them."""
    counts = np.array([len(chunk) for chunk in chunks], np.uint32)
    values = [b"".join(chunk) for chunk in chunks]
    arrays = [array_header(len(chunk)) + each for chunk, each in zip(chunks, values, strict=True)]
    if form == "arrays":
        return ((tuple(arrays), None, 0, counts),)
    if form == "payloads":  # in which they are the second of three columns
        payloads = tuple(b"before" + array + b"after" for array in arrays)
        places = tuple(PLACE.pack(0, 1) + PLACE.pack(6, 6 + len(array)) + PLACE.pack(0, 0) for array in arrays)
        return ((payloads, places, 1, counts),)
    if form == "joined":
        return (((b"".join(values),), None, -1, np.array([counts.sum()], np.uint32)),)
    half = len(chunks) // 2
    return (*pieces_of(chunks[:half], "arrays"), ((tuple(values[half:])), None, -1, counts[half:]))


FORMS = ("arrays", "payloads", "joined", "two pieces")


def bits(array: pa.Array) -> Any:
    """What an array holds, floats bit by bit."""
    if pa.types.is_dictionary(array.type):
        return str(array.type), array.indices.to_pylist(), array.dictionary.to_pylist()
    if pa.types.is_floating(array.type):
        view = array.view(pa.int64())
        return str(array.type), view.to_pylist()
    return str(array.type), array.to_pylist()


def read(chunks: Sequence[Chunk], wanted: str | None = None, form: str = "arrays") -> Plain | None:
    """Read a column by the kernel: as in Python, if it is not left."""
    plain = read_column(pieces_of(chunks, form), wanted)
    data = b"".join(value for chunk in chunks for value in chunk)
    sizes = np.array([sum(map(len, chunk)) for chunk in chunks], np.int64)
    counts = np.array([len(chunk) for chunk in chunks], np.int64)
    try:
        values = find_values(data, int(counts.sum()), sizes, counts)
    except BadPayload:
        assert plain is None
        return None
    if plain is None:
        return None
    assert wanted is None or plain.type == wanted
    assert wanted is not None or plain.natural in (None, plain.type)
    if wanted is None:
        assert plain.natural == natural_type(values)
    column = build(values, plain.type)
    assert not len(column.odd)
    plain.array.validate(full=True)
    assert bits(plain.array) == bits(column.array)
    assert plain.array.null_count == column.array.null_count
    if plain.bounds is not None:
        known = [value for value in plain.array.to_pylist() if value is not None]
        assert plain.bounds == (min(known), max(known))
    return plain


def f32(value: float) -> bytes:
    return b"\xca" + struct.pack(">f", value)


def integer(value: int, width: int) -> bytes:
    """Pack an integer in the fewest bytes that hold it, but no fewer than `width`."""
    for size, signed, unsigned in ((1, 0xD0, 0xCC), (2, 0xD1, 0xCD), (4, 0xD2, 0xCE), (8, 0xD3, 0xCF)):
        if size >= width and -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1:
            return bytes([signed]) + value.to_bytes(size, "big", signed=True)
        if size >= width and 0 <= value < 1 << 8 * size:
            return bytes([unsigned]) + value.to_bytes(size, "big")
    raise AssertionError(value)


pack: Callable[[Any], bytes] = msgpack.packb
NIL = b"\xc0"
nils = st.just(NIL)
floats = st.floats().map(pack)
integers = (
    st.integers(-(1 << 63), MAX).map(pack)
    | st.integers(-200, 300).map(pack)
    | st.tuples(st.integers(-(1 << 63), (1 << 64) - 1), st.sampled_from((0, 1, 2, 4, 8))).map(
        lambda pair: integer(*pair)
    )
)
small_texts = st.sampled_from(["", "a", "host-1", "host-12", "é", "region-north-1", "x" * 16, "x" * 17, "y" * 40]).map(
    pack
)
any_texts = st.text(max_size=40).map(pack)
strange = st.one_of(
    st.sampled_from(
        [
            *(b"\xc2", b"\xc3", b"\xc1", b"\xa2\xff\xfe", b"\xd9\x01a", b"\xda\x00\x02ab", b"\xdb\x00\x00\x00\x01a"),
            *(b"\xa3\xed\xa0\x80", b"\xc4\x01a", b"\xd6\xff\x00\x00\x00\x01", b"\x91\x01", b"\x81\xa1a\x01", b"\xa5ab"),
            *(b"\xcf" + b"\xff" * 8, b"\xd9", b"\xcb\x00", b"", b"\xd3\x01"),
        ]
    ),
    st.text(min_size=200, max_size=400).map(pack),
    st.floats(width=32).map(f32),
)

KINDS = (
    floats,
    floats | nils,
    integers,
    integers | nils,
    floats | integers | nils,
    small_texts,
    small_texts | nils,
    any_texts,
    any_texts | nils,
    floats | integers | any_texts | nils | strange,
    small_texts | strange,
    st.just(pack(float("nan"))) | nils,
    nils,
)


@st.composite
def columns(draw: st.DrawFn) -> list[Chunk]:
    """Entries of one column: mostly of one kind, with a few values that are repeated in their order."""
    kind = draw(st.sampled_from(KINDS))
    chunks = draw(st.lists(st.lists(kind, min_size=1, max_size=20), min_size=1, max_size=6))
    times = draw(st.sampled_from((1, 1, 1, 4, 30)))  # runs of eight values, and more
    return [chunk * times for chunk in chunks]


@pytest.mark.slow
@given(columns(), st.sampled_from(WANTED), st.sampled_from(FORMS))
@settings(max_examples=80)
def test_a_column_is_read_as_in_python_or_left(chunks: list[Chunk], wanted: str | None, form: str) -> None:
    read(chunks, wanted, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1.5, -0.0, math.inf, float("nan")], "f64"),
        ([1.5, None, 2.5], "f64"),
        ([1.5, 3, -(1 << 53)], "f64"),
        ([0, 127, 128, 255, 65_536, -1, -32, -33, -129, -(1 << 63), MAX], "i64"),
        ([1, None, 1 << 40], "i64"),
        (["a", "", None, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "é", "日本"], "str"),
    ],
)
def test_plain_columns_are_not_left(values: list[Any], type_: str, form: str) -> None:
    chunks = [[pack(value) for value in values] * times for times in (1, 9, 2)]
    for wanted in (None, type_):
        found = read(chunks, wanted, form)
        assert found is not None
        assert found.type == type_


def test_what_does_not_fit_the_wanted_type_is_left() -> None:
    floats_, integers_, texts = ([[pack(value)] * 9] for value in (1.5, 7, "a"))
    assert read(floats_, "i64") is None
    assert read(floats_, "str") is None
    assert read(texts, "f64") is None
    assert read(texts, "i64") is None
    assert read(integers_, "str") is None
    assert read(integers_, "f64") is not None
    assert read([[pack(1 << 53)]], "f64") is not None
    assert read([[pack((1 << 53) + 1)]], "f64") is None
    assert read([[pack(1 << 63)]]) is None
    assert read_column(pieces_of(floats_, "arrays"), "bool") is None


def words(count: int, different: int, width: int = 0) -> list[bytes]:
    return [pack(f"{number * 7919 % different:0{width}}") for number in range(count)]


@pytest.mark.parametrize(
    ("values", "is_dictionary"),
    [
        (words(DICTIONARY_ROWS, 100), True),
        (words(DICTIONARY_ROWS - 1, 100), False),
        (words(10_000, 512), True),
        (words(10_000, 513), False),  # more than half of the first sample
        (words(1_024, 5) + words(9_000, 700), False),  # the one in the middle
        (words(1_024, 5) + words(100_000, DICTIONARY_VALUES, 1)[:200] + words(9_000, 500), True),
        (words(1_024, 5) + [NIL] * 4_000 + words(1_000, 400), True),
        (words(5_000, 300, 30), True),
        (words(4_200, 300, 1_800), False),  # more bytes than a dictionary may have
        ([NIL] * 2_000 + words(5_000, 30), True),
    ],
)
def test_dictionaries_are_chosen_as_in_python(values: list[bytes], is_dictionary: bool) -> None:
    for chunks, forms in (([values], ["joined"]), ([values[:1_000], values[1_000:4_000], values[4_000:]], FORMS[1:])):
        for form in forms:
            found = read(chunks, None, form)
            assert found is not None
            assert pa.types.is_dictionary(found.array.type) == is_dictionary


def test_a_dictionary_ends_at_the_same_word() -> None:
    """Few words in both samples, and beside them as many as a dictionary may have, or one more."""
    for more in (0, 1):
        rare = [pack(f"{number:x}") for number in range(DICTIONARY_VALUES - 3 + more)]
        values = words(2_000, 3) + rare + words(len(rare) + 5_000, 3)
        found = read([values])
        assert found is not None
        different = len(set(values))
        assert pa.types.is_dictionary(found.array.type) == (different <= DICTIONARY_VALUES)


def test_a_dictionary_ends_at_the_same_byte() -> None:
    """Words of 300 bytes, with four and their headers for each, and four: up to 512 kB."""
    many = ((1 << 19) - 4 - 3 * 6) // 307
    for number, is_dictionary in ((many, True), (many + 1, False)):
        rare = [pack(f"{each:0300}") for each in range(number)]
        found = read([[pack("a"), pack("b"), pack("c")] * 700 + rare + [pack("a")] * 10_000])
        assert found is not None
        assert pa.types.is_dictionary(found.array.type) == is_dictionary


def test_texts_of_other_forms_are_left_to_python() -> None:
    for odd in (b"\xd9\x01a", b"\xa1\xff", b"\xdb\x00\x01\x00\x00" + b"x" * 65_536):
        assert read([[*words(5_000, 10), odd]]) is None
        assert read([[*words(50, 10), odd]]) is None


@pytest.mark.parametrize("form", ["arrays", "payloads", "two pieces"])
@pytest.mark.parametrize("nil", [[], [NIL]])
def test_entries_that_repeat_their_texts_are_read_once(form: str, nil: list[bytes]) -> None:
    """Python makes a dictionary only of as many different values, and so does the kernel."""
    for chunk in (nil + words(2_000, 100), [*words(100, 40), *nil, pack("x" * 20)], nil + words(3_000, 2_900, 5)):
        for chunks in (
            [chunk] * 6,
            [chunk] * 3,
            [chunk, chunk[:-1], chunk] * 9,
            [chunk[number:] for number in range(9)] * 3,
            [*([chunk] * 5), *([chunk[:20]] * 5), chunk[1:50]],
        ):
            assert read(chunks, None, form) is not None


def test_entries_that_only_look_alike_are_read_each() -> None:
    """They differ in the middle alone."""
    ends = words(40, 30)
    chunks = [
        ends + words(1_000, 100)[:number] + [pack(f"{number:04}")] + words(1_000, 100)[number:] + ends
        for number in range(9)
    ]
    assert read(chunks) is not None
    assert read(chunks * 2) is not None


def test_repeated_texts_of_one_width_are_read_each() -> None:
    for chunk in (words(2_000, 100, 4), [pack("")] * 2_000, [pack(""), NIL] * 1_000):
        assert read([chunk] * 6) is not None


def test_repeated_texts_that_are_not_plain_are_left_to_python() -> None:
    for odd in (b"\xd9\x01a", b"\xa1\xff", b"\x01"):
        assert read([[*words(2_000, 100), odd]] * 6) is None


def test_long_texts_are_left_to_python() -> None:
    assert read([[pack("x" * 5_000)] * 5]) is None
    assert read([[pack("x" * 3_000)] * 5]) is not None


@given(
    st.lists(
        st.integers(-(1 << 62), 1 << 62) | st.integers(-(10**18), 10**18) | st.integers(1_600_000_000_000_000, 10**16),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from((None, "s", "ms", "us", "ns")),
)
@settings(max_examples=50)
def test_times_are_those_of_python_or_left(times: list[int], precision: str | None) -> None:
    values = find_values(b"".join(map(pack, times)), len(times))
    wanted = decode_time(values, precision)
    found = decode_integers(np.array(times), min(times), max(times), precision)
    assert (found is None) == bool(len(wanted.odd))
    if found is not None:
        assert found.us.tolist() == wanted.us.tolist()
        digits = [[0] * len(times) if each.sub_us is None else each.sub_us.tolist() for each in (found, wanted)]
        assert digits[0] == digits[1]


def test_wrong_calls_are_refused() -> None:
    counts = np.array([1], np.uint32)
    call = kernel_of_checkout().read_column
    bounds = (1, 1, 1, 1, 1, 1)
    for piece in (
        ((b"\x91\x01", b"\x91\x01"), None, 0, counts),  # one count for two arrays
        ((b"\x92\x01\x02",), None, 0, counts),  # another number of values
        ((b"",), None, 0, counts),
        ((b"\x91\x01",), (PLACE.pack(0, 3),), 0, counts),  # beyond the end
        ((b"\x91\x01",), (PLACE.pack(2, 0),), 0, counts),
        ((b"\x91\x01",), (PLACE.pack(0, 2),), 1, counts),  # no such place
        ((b"\x91\x01",), (), 0, counts),
        ((b"\x91\x01",), ("places",), 0, counts),
    ):
        with pytest.raises(ValueError, match="a piece"):
            call((piece,), 0, bounds)
    with pytest.raises(TypeError):
        call([((b"\x91\x01",), None, 0, counts)], 0, bounds)
    with pytest.raises(TypeError):
        call((("", None, 0, counts),), 0, bounds)
    assert call((), 0, bounds) is None
