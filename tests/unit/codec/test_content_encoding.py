"""Decoding of gzip, deflate and zstd bodies: what is taken, what is refused and where, and the bound on the output."""

from __future__ import annotations

import gzip
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcpipe.codec.content_encoding import Coding, Decoder, coding_of, decode
from arcpipe.errors import BadPayload, PayloadTooLarge, UnsupportedEncoding
from tests.support.compression import zstd

TEXT = b"cpu,host=web-1 usage=0.5 1700000000000000000\n" * 100
LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zstd_with_window(log: int) -> bytes:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
    return compressor.compress(TEXT) + compressor.flush()


ENCODERS: dict[str, tuple[Coding, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
}
every_encoder = pytest.mark.parametrize(("coding", "encode"), ENCODERS.values(), ids=list(ENCODERS))


# Names


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        (b"gzip", "gzip"),
        (b"GZip", "gzip"),
        (b"x-gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"zstd", "zstd"),
        (b" zstd ,", "zstd"),
        (b"identity, gzip", "gzip"),
        (b"identity", None),
        (b"Identity", None),
        (b"", None),
        (b" , ", None),
    ],
)
def test_a_field_names_its_coding(field: bytes, coding: str | None) -> None:
    assert coding_of(field) == coding


@pytest.mark.parametrize("field", [b"br", b"compress", b"gzip;q=1", b"\xff\x00", b"gz ip", b"*", b"x" * 10_000])
def test_an_unknown_coding_is_refused_with_those_that_are_known(field: bytes) -> None:
    with pytest.raises(UnsupportedEncoding, match="use one of gzip, deflate, zstd, snappy") as raised:
        coding_of(field)
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("field", [b"gzip, zstd", b"gzip,gzip", b"br, gzip", b",".join([b"gzip"] * 1000)])
def test_encodings_on_top_of_each_other_are_refused(field: bytes) -> None:
    with pytest.raises(UnsupportedEncoding, match="one at a time"):
        coding_of(field)


# What is taken


@every_encoder
@pytest.mark.parametrize("size", [0, 1, 100, 65_536, 262_144, 262_145, 900_000])
def test_what_was_encoded_is_decoded(coding: Coding, encode: Callable[[bytes], bytes], size: int) -> None:
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    assert decode(coding, encode(data), LIMIT) == data


@every_encoder
def test_incompressible_data_larger_than_any_piece_is_decoded(coding: Coding, encode: Callable[[bytes], bytes]) -> None:
    data = b"".join(zlib.crc32(struct.pack("I", number)).to_bytes(4, "big") for number in range(150_000))
    assert decode(coding, encode(data), LIMIT) == data


def _lines(digits: int) -> bytes:
    """Return 700 kB of lines that are compressed to a fifth to a half, by their random digits."""
    source = random.Random(digits)
    line = b"cpu,host=h%d usage=%0*d 1700000000000000000\n"
    lines = [line % (source.randrange(100), digits, source.randrange(10**digits)) for _ in range(20_000)]
    return b"".join(lines)[:700_000]


@every_encoder
@pytest.mark.parametrize("digits", [2, 8, 20, 40])
def test_bodies_of_usual_lines_are_decoded(coding: Coding, encode: Callable[[bytes], bytes], digits: int) -> None:
    """Most such bodies in zstd were refused as truncated: a piece ended where the decompressor had nothing left."""
    data = _lines(digits)
    encoded = encode(data)
    assert decode(coding, encoded, LIMIT) == data
    for end in range(1, len(encoded), 30_011):
        with pytest.raises(BadPayload, match="truncated"):
            decode(coding, encoded[:end], LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_several_members_or_frames_are_one_body(coding: Coding) -> None:
    encode = ENCODERS[coding][1]
    parts = [b"", b"a", TEXT, b"", TEXT * 3]
    assert decode(coding, b"".join(map(encode, parts)), LIMIT) == b"".join(parts)


def test_a_gzip_header_may_have_a_name_a_comment_and_a_checksum() -> None:
    header = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x04\x00xtra" + b"name\0" + b"comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    assert decode("gzip", header + gzip.compress(TEXT)[10:], LIMIT) == TEXT


def test_skippable_zstd_frames_are_skipped() -> None:
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    assert decode("zstd", skippable + zstd.compress(TEXT) + skippable, LIMIT) == TEXT


def test_zstd_windows_of_up_to_8_mb_are_taken_and_larger_ones_refused() -> None:
    assert decode("zstd", zstd_with_window(23), LIMIT) == TEXT
    with pytest.raises(BadPayload, match="too much memory"):
        decode("zstd", zstd_with_window(24), LIMIT)


@every_encoder
def test_decoding_in_steps_gives_the_same(coding: Coding, encode: Callable[[bytes], bytes]) -> None:
    data = TEXT * 200
    decoder = Decoder(coding, encode(data), LIMIT)
    steps = 1
    while not decoder.advance(1):
        steps += 1
    assert decoder.decoded() == data
    assert steps == 4  # pieces of 256 KB


# The bound


@every_encoder
def test_the_bound_on_the_output_holds_to_the_byte(coding: Coding, encode: Callable[[bytes], bytes]) -> None:
    data = encode(bytes(300_000))
    assert len(decode(coding, data, 300_000)) == 300_000
    with pytest.raises(PayloadTooLarge):
        decode(coding, data, 299_999)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_the_bound_is_for_all_members_or_frames_together(coding: Coding) -> None:
    data = ENCODERS[coding][1](bytes(1000)) * 10
    assert len(decode(coding, data, 10_000)) == 10_000
    with pytest.raises(PayloadTooLarge):
        decode(coding, data, 9_999)


@pytest.mark.slow
@every_encoder
def test_a_bomb_is_refused_without_the_memory_that_it_asks_for(
    coding: Coding, encode: Callable[[bytes], bytes]
) -> None:
    bomb = encode(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decode(coding, bomb, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_of_empty_members_or_frames_is_refused_soon(coding: Coding) -> None:
    data = ENCODERS[coding][1](b"") * 1_000_000
    before = time.process_time()
    with pytest.raises(BadPayload, match="more than 10000"):
        decode(coding, data, LIMIT)
    assert time.process_time() - before < 5.0  # 0.2 s where nothing else runs


def test_a_step_over_empty_members_ends_soon() -> None:
    decoder = Decoder("gzip", gzip.compress(b"") * 1000, LIMIT)
    assert decoder.advance(256 << 10) is False


# What is refused


@every_encoder
@pytest.mark.parametrize("left", [0, 1, 2, 3, 10, -40, -9, -5, -2, -1])
def test_truncated_data_are_refused_wherever_they_end(
    coding: Coding, encode: Callable[[bytes], bytes], left: int
) -> None:
    data = encode(b"".join(b"%d " % (number * number) for number in range(100)))[:left]
    with pytest.raises(BadPayload, match=rf"truncated {coding} data: the body ends at byte {len(data)}, within the"):
        decode(coding, data, LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_damage_in_a_later_part_says_where_the_part_starts(coding: Coding) -> None:
    first = ENCODERS[coding][1](TEXT)
    second = ENCODERS[coding][1](TEXT)
    with pytest.raises(BadPayload, match=rf"that starts at byte {len(first)}$"):
        decode(coding, first + second[:-3], LIMIT)
    with pytest.raises(BadPayload, match=rf"^invalid {coding} data in the \w+ that starts at byte {len(first)}: \w"):
        decode(coding, first + second[:4] + b"\xff" * 40 + second[44:], LIMIT)


@every_encoder
@pytest.mark.parametrize("garbage", [b"\0", b"\0" * 512, b"x", b"\x1f", b"\x28\xb5", TEXT])
def test_trailing_garbage_is_refused(coding: Coding, encode: Callable[[bytes], bytes], garbage: bytes) -> None:
    data = encode(TEXT)
    with pytest.raises(BadPayload, match=rf"trailing bytes after the {coding} data at byte {len(data)}"):
        decode(coding, data + garbage, LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_wrong_checksum_is_refused(coding: Coding) -> None:
    data = bytearray(ENCODERS[coding][1](TEXT))
    data[-5 if coding == "gzip" else -1] ^= 1
    with pytest.raises(BadPayload, match="checksum"):
        decode(coding, bytes(data), LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("data", [b"cpu usage=1", bytes(20), zlib.compress(TEXT)])
def test_data_of_another_format_are_refused(coding: Coding, data: bytes) -> None:
    with pytest.raises(BadPayload, match=f"invalid {coding} data in the .* that starts at byte 0: "):
        decode(coding, data, LIMIT)


@given(
    coding=st.sampled_from(["gzip", "deflate", "zstd"]),
    data=st.binary(max_size=300)
    | st.builds(
        lambda encode, text, at, byte: (lambda d: d[: at % len(d)] + byte + d[at % len(d) + 1 :])(encode(text)),
        st.sampled_from([gzip.compress, zlib.compress, raw_deflate, zstd.compress]),
        st.binary(max_size=2000),
        st.integers(min_value=0, max_value=3000),
        st.binary(max_size=3),
    ),
)
@example(coding="deflate", data=b"\x78\xbb")
@settings(deadline=None)
def test_no_data_end_in_another_error_or_above_the_bound(coding: Coding, data: bytes) -> None:
    try:
        assert len(decode(coding, data, 5000)) <= 5000
    except (BadPayload, PayloadTooLarge):
        pass


def test_a_snappy_body_that_is_no_block_is_refused_by_what_it_is() -> None:
    block = pa.Codec("snappy").compress(b"cpu usage=1\n" * 100, asbytes=True)
    stream = b"\xff\x06\x00\x00sNaPpY\x00" + (len(block) + 4).to_bytes(3, "little") + bytes(4) + block
    for bad, reason in (
        (stream, "is a snappy stream, and has to be one snappy block"),
        (block[:-1], f"{len(block) - 1} bytes do not become the 1200 that it tells"),
        (block + b"x", f"{len(block) + 1} bytes do not become the 1200 that it tells"),
    ):
        with pytest.raises(BadPayload, match=reason):
            decode("snappy", bad, LIMIT)
