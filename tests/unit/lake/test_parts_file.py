"""A file that is read in parts is to pyarrow what a real one is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.lake.parts_file import PartsFile

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 12), st.just(0)),
        st.tuples(st.just("seek"), st.integers(-3, 12), st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])),
    ),
    max_size=12,
)


@given(data=st.binary(max_size=9), steps=STEPS)
def test_it_is_as_a_file_in_memory(data: bytes, steps: list[tuple[str, int, int]]) -> None:
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return data[offset : offset + length]

    file, model = PartsFile(len(data), read), io.BytesIO(data)
    for what, number, whence in steps:
        if what == "read":
            assert bytes(file.read(number)) == model.read(number)
        elif {io.SEEK_SET: 0, io.SEEK_CUR: model.tell(), io.SEEK_END: len(data)}[whence] + number < 0:
            with pytest.raises(ValueError, match="is before the file"):
                file.seek(number, whence)
        else:
            assert file.seek(number, whence) == model.seek(number, whence)
        assert file.tell() == model.tell()
    assert all(offset >= 0 and length > 0 and offset + length <= len(data) for offset, length in asked)
