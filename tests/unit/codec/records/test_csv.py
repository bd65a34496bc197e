"""CSV: cells against the csv module, types, bad records."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.records.csv_lines import encode
from arcpipe.codec.records.report import Records
from arcpipe.codec.records.roles import Roles, read_roles
from arcpipe.errors import BadPayload
from arcpipe.units import KB
from tests.unit.codec.records.model import rows_of

PLAIN = Roles("m")


def column(cells: list[str], word: str = "") -> list[Any]:
    """Read the cells of a column beside one that is always there."""
    body = "n,v\n" + "".join(f"1,{cell}\n" for cell in cells)
    found = encode(body.encode(), roles=read_roles("m", "", "", "", f"v:{word}" if word else ""))
    assert not found.errors
    assert found.encoded is not None
    values: list[Any] = msgspec.msgpack.decode(found.encoded.body)["columns"]["v"]
    return values


def reasons(records: Records) -> dict[int, str]:
    return {error.line: error.reason for error in records.errors}


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=6) | st.sampled_from(
    ["", "1", "-5", "0.5", "1e3", "007", "true", "a,b", 'a"b', "a\nb", "é"]
)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=150), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=100, deadline=None)
def test_texts_are_what_the_csv_module_wrote(rows: list[tuple[str, str]], end: str) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=end)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    found = encode(file.getvalue().encode(), roles=read_roles("m", "", "", "a,b", ""))
    assert not found.errors
    assert [row for _, row in rows_of(found)] == [
        {name: cell for name, cell in zip("ab", cells, strict=True) if cell} for cells in rows
    ]


@pytest.mark.parametrize(
    ("cells", "word", "values"),
    [
        (["1", "-2", "0"], "", [1, -2, 0]),
        (["9007199254740993", "18446744073709551615"], "", [9007199254740993, 18446744073709551615]),
        (["1.5", "2", "1e3"], "", [1.5, 2, 1000.0]),
        (["1e999", "007", "+1", "0x1", "1_0", " 1"], "", ["1e999", "007", "+1", "0x1", "1_0", " 1"]),
        (["true", "FALSE", "", "yes"], "", [True, False, None, "yes"]),
        (["1", "", "x"], "", [1, None, "x"]),
        (["1", "2"], "str", ["1", "2"]),
        (["1", "2.5", "NaN-"[:3], ""], "f64", [1.0, 2.5, "nan", None]),
        (["1", "-2"], "i64", [1, -2]),
        (["1", "18446744073709551615"], "u64", [1, 18446744073709551615]),
        (["True", ""], "bool", [True, None]),
    ],
)
def test_cells_become_values(cells: list[str], word: str, values: list[Any]) -> None:
    found = ["nan" if value != value else value for value in column(cells, word)]
    assert list(map(repr, found)) == list(map(repr, values))


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("x", "i64"),
        ("1.5", "i64"),
        ("1e3", "i64"),
        ("9223372036854775808", "i64"),
        ("-1", "u64"),
        ("1e999", "f64"),
        ("1", "bool"),
    ],
)
def test_a_cell_that_is_not_of_its_type_refuses_its_record(cell: str, word: str) -> None:
    body = f"n,v\n1,\n2,{cell}\n3,\n".encode()
    found = encode(body, roles=read_roles("m", "", "", "", f"v:{word}"))
    assert [row["n"] for _, row in rows_of(found)] == [1, 3]
    assert reasons(found) == {3: f"cell '{cell}' of 'v' is not of type {word}"}


def test_bad_records_have_their_lines_and_reasons() -> None:
    body = b'time,a,b\n1700000000,x,1\n2,y\n\nsoon,"x\ny",3\n5,\xff,4\n6,"open" x,5\n7,z,6\n8,"never closed,7\n'
    found = encode(body, roles=PLAIN)
    assert [row["b"] for _, row in rows_of(found)] == [1, 6]
    assert reasons(found) == {
        3: "2 cells, but 3 names",
        5: "the time is not valid: text 'soon' is no ISO 8601 time",
        7: "a cell of 'a' is not valid UTF-8",
        8: "not a CSV record: ',' expected after '\"'",
        10: "not a CSV record: unexpected end of data",
    }


def test_records_may_name_their_measurements() -> None:
    found = encode(b"k,v\na,1\n,2\nb,3\n", roles=read_roles("m", "", "k", "", ""))
    assert sorted(rows_of(found), key=repr) == [("a", {"v": 1}), ("b", {"v": 3}), ("m", {"v": 2})]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"a,a\n1,2\n", "the name 'a' twice"),
        (b"a,\n1,2\n", "field name is empty"),
        (b"time\n1\n", "no field besides time"),
        (b'"a\n1\n', "cannot be read"),
        (b"a,b\n1," + b"x," * 600_000, "a line of CSV has more than 1048576 bytes"),
        (b",".join(b"c%d" % number for number in range(5_000)) + b"\n", "more than 4096 names"),
    ],
)
def test_names_that_are_not_usable_refuse_the_body(body: bytes, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        encode(body, roles=PLAIN)


@pytest.mark.parametrize("body", [b"", b"\n\n", b"a,b\n", b"\xef\xbb\xbfa,b"])
def test_a_body_without_records_has_none(body: bytes) -> None:
    assert encode(body, roles=PLAIN) == Records(None, [], 0)


# Around the records of the first step, of a later one, and the bytes of a window.
RUNS = st.sampled_from([0, 1, 63, 64, 65, 4_095, 4_096, 4_200, 65_535, 65_600, 300_000])
PARTS = st.sampled_from(["1,2", "1,2", "too,many,cells", '"a\n\n\nb",3', f'"a{chr(10) * 5_000}b",4'])


@given(st.lists(st.tuples(RUNS, PARTS), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]), RUNS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_blank_lines_are_skipped_and_counted(
    parts: list[tuple[int, str]], end: str, first: int, has_last_end: bool
) -> None:
    """Those within a cell stay."""
    text = end * first + "n,v" + end
    good, bad = [], []
    for run, part in parts:
        text += end * run
        if part.startswith("too"):
            bad.append(text.count("\n") + 1)
        else:
            [cells] = csv.reader(io.StringIO(part, newline=""))
            good.append(cells)
        text += part + end
    found = encode(
        (text if has_last_end else text.removesuffix(end)).encode(), roles=read_roles("m", "", "", "n,v", "")
    )
    assert [list(row.values()) for _, row in rows_of(found)] == good
    assert sorted(reasons(found)) == bad


def test_a_body_of_blank_lines_takes_no_step_for_each() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    assert encode(b"\n" * 1_000_000 + b"n\n" + b"\r\n" * 10_000_000 + b"1\n", check, roles=PLAIN).encoded is not None
    assert calls < 200


def test_a_large_body_is_read_in_steps_and_nothing_is_lost() -> None:
    rows = [(number, f"text {number}", number / 3) for number in range(30_000)]
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    body = "n,s,f\n" + "".join(f"{n},{s},{f!r}\n" for n, s, f in rows)
    found = encode(body.encode(), check, roles=PLAIN)
    assert [tuple(row.values()) for _, row in rows_of(found)] == rows
    assert calls > len(body) // (256 * 1024)


@pytest.fixture
def limit() -> Iterator[int]:
    """Characters of a cell, as they are in a worker: `arcpipe load` changes them for its process."""
    before = csv.field_size_limit(128 * KB)
    yield 128 * KB
    csv.field_size_limit(before)


@pytest.mark.parametrize("quoted", [b'1,"%b', b'1,"x\n%b', b"1,%b"])
def test_what_is_within_a_cell_that_is_too_long_is_no_record(quoted: bytes, limit: int) -> None:
    """The csv module forgets that it is within quotes, and the lines of the cell that follow were written."""
    body = b'a,b\n0,0\n\n%b\nwithin,quotes\n"\n3,4\n' % (quoted % (b"x" * (limit + 1)))
    line = 5 if b"\n" in quoted else 4
    with pytest.raises(BadPayload, match=f"^line {line}: a cell of CSV has more than {limit} characters"):
        encode(body, roles=Roles("m"))
