"""Many fields alike, found by comparisons of all bytes: held against a walk from one to the next."""

from __future__ import annotations

import random

import numpy as np
import pytest

from arcpipe.codec.effort import go_on
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.chain import chain
from arcpipe.codec.protobuf.scan import scan_one
from arcpipe.errors import BadPayload
from benchmarks.load.telemetry import sized

# Any byte becomes one of those that begin a field, or a length.
ALIKE = bytes(b"\x0a\x80\x81\x01\x02\x12"[byte % 6] for byte in range(256))


def content(source: random.Random, size: int) -> bytes:
    """Bytes that look like beginnings of fields at many places."""
    return b"\x0a" + source.randbytes(size - 1).translate(ALIKE)


def body(seed: int, sizes: tuple[int, int], fields: int, tags: tuple[int, ...] = (1,)) -> tuple[bytes, list[bytes]]:
    source = random.Random(seed)
    contents = [content(source, source.randint(*sizes)) for _ in range(fields)]
    return b"".join(sized(source.choice(tags), one) for one in contents), contents


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "tags"),
    [((130, 400), (1,)), ((100, 200), (1,)), ((130, 400), (1, 1, 1, 1, 1, 1, 1, 1, 1, 2)), ((1, 20_000), (1,))],
)
def test_fields_are_found_as_one_after_the_other(seed: int, sizes: tuple[int, int], tags: tuple[int, ...]) -> None:
    data, contents = body(seed, sizes, 600, tags)
    buffer = Buffer(data)
    found = scan_one(buffer, buffer.start, buffer.end, go_on)
    places = zip(found.start.tolist(), found.end.tolist(), strict=True)
    assert [buffer.slice(start, end) for start, end in places] == contents


@pytest.mark.parametrize("cut", [1, 2, 3, 130, 40_000])
def test_a_body_that_is_cut_is_refused_at_its_last_field(cut: int) -> None:
    data, contents = body(1, (300, 300), 400)
    buffer = Buffer(data[:-cut])
    place = len(data[:-cut]) - 1 - (len(data[:-cut]) - 1) % len(sized(1, contents[0]))
    with pytest.raises(BadPayload, match=f"at byte {place}: a field goes on after the end of its message"):
        scan_one(buffer, buffer.start, buffer.end, go_on)


def test_usual_fields_are_found_at_once() -> None:
    source = random.Random(2)
    contents = [b"\x0a" + source.randbytes(source.randint(200, 300)).hex().encode("ascii") for _ in range(300)]
    buffer = Buffer(b"".join(sized(1, one) for one in contents))
    places = chain(buffer, buffer.start, buffer.end)
    assert places is not None
    assert len(places) > 295
    ends = np.cumsum([0, *(len(sized(1, one)) for one in contents)])
    assert places.tolist() == (buffer.start + ends[: len(places)]).tolist()


def test_content_that_looks_like_fields_is_left_to_the_loop() -> None:
    """Else a few fields would cost as much as a whole window, again and again."""
    data, _ = body(2, (200, 300), 500)
    buffer = Buffer(data)
    assert chain(buffer, buffer.start, buffer.end) is None
