"""Columns of Arrow as MessagePack arrays: few texts one by one, many at once, with the same values."""

from __future__ import annotations

import msgpack
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec import packing
from arcpipe.codec.packing import pack_taken, pack_texts

TEXTS = st.none() | st.text(max_size=40) | st.integers(0, 300).map("é".__mul__)


@given(st.lists(TEXTS, max_size=40), st.sampled_from([0, 32, 100]))
def test_texts_come_back_whichever_way_they_are_packed(texts: list[str | None], few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_FEW", few)
        assert msgpack.unpackb(pack_texts(pa.array(texts, pa.string()))) == texts


@given(st.lists(TEXTS, min_size=1, max_size=40), st.data(), st.sampled_from([0, 32, 100]))
def test_taken_texts_come_back(texts: list[str | None], data: st.DataObject, few: int) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=100))
    values = pa.array(texts, pa.string())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_FEW", few)
        packed = pack_taken(values, pa.array(rows, pa.int64()).to_numpy())
    assert msgpack.unpackb(packed) == [texts[row] for row in rows]


def test_a_slice_of_texts_is_packed_without_its_neighbours() -> None:
    texts = pa.array(["a", "bc", None, "d" * 300, "e"] * 20)
    for start, count in ((1, 3), (0, 0), (2, 1), (3, 60)):
        assert msgpack.unpackb(pack_texts(texts.slice(start, count))) == texts.slice(start, count).to_pylist()
