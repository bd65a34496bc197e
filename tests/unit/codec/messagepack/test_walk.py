"""A walker stops where values end, whatever they are, and takes nothing that is cut off."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.messagepack.walk import Walker, value_end
from arcpipe.errors import BadPayload
from tests.support.values import any_value


@pytest.mark.slow
@given(st.lists(any_value, min_size=1, max_size=20), st.data())
def test_it_stops_where_each_value_ends(values: list[bytes], data: st.DataObject) -> None:
    walker = Walker(b"ahead" + b"".join(values), 5)
    taken = 0
    while taken < len(values):
        count = data.draw(st.integers(1, len(values) - taken))
        walker.skip(count)
        taken += count
        assert walker.offset == 5 + sum(map(len, values[:taken]))
    checked, end = Walker(b"ahead" + b"".join(values), 5), 5
    for value in values:
        start, end = end, checked.end_of(end)
        assert end == checked.offset == start + len(value)


@pytest.mark.parametrize(
    "value", [b"\x91" * 5_000 + b"\x01", msgpack.packb("x" * 1_000_000), msgpack.packb([["y"] * 9] * 99_999)]
)
def test_deep_and_long_values_are_passed(value: bytes) -> None:
    assert value_end(value, 0) == len(value)
    walker = Walker(b"\x01" + value + b"\x02" + value + b"\x03")
    walker.skip(3)
    assert walker.offset == 2 + len(value)
    walker.skip(1)
    walker.skip(1)
    assert walker.offset == 3 + 2 * len(value)


@pytest.mark.parametrize("data", [b"", b"\x92\x01", b"\xa3ab", b"\xda\x00\x09abc", b"\xc1", b"\xdb\x00"])
def test_what_is_no_whole_value_is_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        Walker(data).skip(1)
    with pytest.raises(BadPayload):
        Walker(b"\x01" + data).skip(2)
