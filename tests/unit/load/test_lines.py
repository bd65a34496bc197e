"""Line protocol is cut between lines, by its content alone."""

from __future__ import annotations

import io
import random
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.line_protocol.body import Lines, encode_by_line
from arcpipe.load import lines
from arcpipe.load.chunks import BadInput, Chunk
from arcpipe.load.plan import Plan
from arcpipe.units import MB

values = st.sampled_from(
    ["1", "2i", "t", '"a"', '"a b"', '"a\nb"', '"\n\n"', '"say \\"no\\"\nb"', '"c:\\\\"', '"cpu v=1\ncpu v=2"']
)
names = st.sampled_from(["v", 'q"', "a\\ b", 'a\\,b"', "w"])
good = st.builds(
    lambda tag, field, value, time: f"cpu{tag} {field}={value}{time}",
    st.sampled_from(["", ",host=a", ',q="x', ",p=a\\ b"]),
    names,
    values,
    st.sampled_from(["", " 1790000000000000000"]),
)
others = st.sampled_from(["", "  ", "# a comment", '# say "no', "bad", "\r"])
broken = st.sampled_from(['cpu v="open', 'cpu v="x"y', 'cpu,"a b="c', '"'])
broken_texts = st.lists(st.one_of(good, others, broken), max_size=25).map(lambda found: "\n".join(found).encode())
texts = st.lists(st.one_of(good, good, others), max_size=25).map(lambda found: "\n".join(found).encode())


class Slow(io.BytesIO):
    """Gives as many bytes as it likes."""

    def __init__(self, data: bytes, seed: int) -> None:
        super().__init__(data)
        self._random = random.Random(seed)

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._random.randint(1, size) if size and size > 0 else size)


def cut(file: IO[bytes], plan: Plan) -> list[Chunk]:
    return list(lines.read(file, plan, "x.lp"))


def points_of(found: Lines) -> int:
    return 0 if found.encoded is None else found.encoded.records


def plan(records: int = 5000, size: int = MB, **options: Any) -> Plan:
    return Plan(batch_records=records, batch_bytes=size, **options)


@given(texts, st.integers(1, 6), st.integers(1, 80), st.integers())
def test_chunks_hold_the_same_points_and_errors_as_the_file(text: bytes, records: int, size: int, seed: int) -> None:
    found = cut(io.BytesIO(text), plan(records, size))
    whole = encode_by_line(text)
    parts = [encode_by_line(chunk.body()) for chunk in found]
    assert [error.text for part in parts for error in part.errors] == [error.text for error in whole.errors]
    assert sum(map(points_of, parts)) == points_of(whole)
    assert all(chunk.records <= records for chunk in found)
    assert [(c.label, c.body()) for c in found] == [
        (c.label, c.body()) for c in cut(Slow(text, seed), plan(records, size))
    ]


@given(broken_texts, st.integers(1, 6), st.integers(1, 80))
def test_strings_that_never_end_take_no_good_line_along(text: bytes, records: int, size: int) -> None:
    """A cut ends a broken string earlier than the whole file would: more lines are good, and none is lost."""
    parts = [encode_by_line(chunk.body()) for chunk in cut(io.BytesIO(text), plan(records, size))]
    assert sum(map(points_of, parts)) >= points_of(encode_by_line(text))


@pytest.mark.slow
@given(texts, st.integers(1, 6), st.integers(1, 80))
def test_a_chunk_is_where_its_label_says(text: bytes, records: int, size: int) -> None:
    for chunk in cut(io.BytesIO(text), plan(records, size)):
        start = int(chunk.label)
        assert text[start : start + len(chunk.body())] == chunk.body()


def test_bad_lines_have_their_numbers_in_the_file() -> None:
    text = b"cpu v=1\n\nbad\n" + b"cpu v=1\n" * 10 + b'cpu v="a\nb"\nworse line\n'
    found = [bad for chunk in cut(io.BytesIO(text), plan(3)) for bad in chunk.bad_records("")[0] if chunk.check()[1]]  # type: ignore[attr-defined]
    assert [(bad.place, bad.text) for bad in found] == [("line 3", "bad"), ("line 16", "worse line")]


def test_an_export_of_influx_inspect_goes_into_its_databases() -> None:
    text = (
        b"# INFLUXDB EXPORT: 1677-09-21T00:12:43Z - 2262-04-11T23:47:16Z\n# DDL\nCREATE DATABASE a WITH NAME autogen\n"
        b"# DML\n# CONTEXT-DATABASE:a\n# CONTEXT-RETENTION-POLICY:autogen\n# writing tsm data\ncpu v=1\ncpu v=2\n"
        b"CREATE DATABASE b WITH NAME x\n# CONTEXT-DATABASE: b c\ncpu v=3\n"
    )
    found = cut(io.BytesIO(text), plan())
    assert [(chunk.stream.database, chunk.records) for chunk in found] == [("a", 2), ("b c", 1)]
    assert not any(b"CREATE" in chunk.body() for chunk in found)
    found = cut(io.BytesIO(text), plan(database="all"))
    assert {chunk.stream.database for chunk in found} == {"all"}


def test_a_line_without_end_is_refused_and_not_read_into_memory() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    file = Endless()
    with pytest.raises(BadInput, match=r"x\.lp: line 1: it has more than 1 MB"):
        cut(file, plan())  # type: ignore[arg-type]
    assert file.given <= 3 * MB


def test_times_are_nanoseconds_unless_the_plan_says_otherwise() -> None:
    assert cut(io.BytesIO(b"cpu v=1"), plan())[0].stream.precision == "ns"
    assert cut(io.BytesIO(b"cpu v=1"), plan(precision="s"))[0].stream.precision == "s"
