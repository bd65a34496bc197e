"""JSON by Arrow kernels means what Python's own JSON reads."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec import json_texts

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.floats(), min_size=1))
@settings(deadline=None)
def test_doubles_are_read_back_bit_by_bit(values: list[float]) -> None:
    for value, text in zip(values, json_texts.doubles(np.array(values)).to_pylist(), strict=True):
        found = json.loads(text)
        if math.isfinite(value):
            assert isinstance(found, float)
            assert (found, math.copysign(1, found)) == (value, math.copysign(1, value))
        else:
            assert found == ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")


@given(st.lists(texts, min_size=1))
@settings(deadline=None)
def test_strings_are_read_back(values: list[str]) -> None:
    assert [json.loads(one) for one in json_texts.quoted(pa.array(values, pa.string())).to_pylist()] == values


@given(st.lists(st.dictionaries(texts, st.integers(-(1 << 63), (1 << 63) - 1))))
@settings(deadline=None)
def test_objects_have_their_own_members(values: list[dict[str, int]]) -> None:
    keys = json_texts.quoted(pa.array([key for one in values for key in one], pa.string()))
    members = json_texts.numbers(np.array([value for one in values for value in one.values()], np.int64))
    made = json_texts.objects(keys, members, np.array([len(one) for one in values], np.int64))
    assert [json.loads(one) for one in made.to_pylist()] == values


def test_a_nan_that_signals_is_a_nan_like_others() -> None:
    signals = np.array([0x7FF0_0000_0000_0001], np.uint64).view(np.float64)
    with warnings.catch_warnings(action="error"):
        assert json_texts.doubles(signals).to_pylist() == ['"NaN"']
