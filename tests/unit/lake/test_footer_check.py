"""Footers that end the process when pyarrow looks at their column chunks are refused before it does.

Bytes of a good footer are changed one by one. What the check takes is looked at in a process of its own.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.lake.folders import Folder
from arcpipe.lake.footer_check import check_file, check_footer
from arcpipe.lake.input_file import InputFile, Odd
from arcpipe.lake.spool import Spool, SpoolMemory
from tests.support.program import ROOT
from tests.support.sets import IS_LONG, long

TABLE = pa.table(
    {
        "time": pa.array(range(60), pa.timestamp("us", "UTC")),
        "f": [1.5] * 60,
        "s": [f"text {number}" for number in range(60)],
        "b": [True, False] * 30,
        "d": pa.array([1] * 60, pa.decimal128(20, 0)),
        "x": pa.array([b"abc"] * 60, pa.binary(3)),
        "l": [[1, None]] * 60,
    }
)
END_BYTES = 8


def file_of() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=30, sorting_columns=[pq.SortingColumn(0)])
    return sink.getvalue()


GOOD = file_of()
FOOTER_BYTES = int.from_bytes(GOOD[-END_BYTES:-4], "little")
FOOTER_AT = len(GOOD) - END_BYTES - FOOTER_BYTES


def changed(at: int, value: int) -> bytes:
    data = bytearray(GOOD)
    data[FOOTER_AT + at] = value
    return bytes(data)


def accepted(data: bytes) -> bool | None:
    """Whether the check takes a file; None if pyarrow itself refuses it."""
    try:
        metadata = pq.read_metadata(io.BytesIO(data))
    except Exception:
        return None
    try:
        check_footer(data[-1000 - FOOTER_BYTES :], metadata)
    except ValueError:
        return False
    return True


def changes(values: int) -> Iterator[tuple[int, int]]:
    """Places in the footer, each with other values of its byte."""
    chance = random.Random(1)
    for at in range(FOOTER_BYTES):
        old = GOOD[FOOTER_AT + at]
        for value in chance.sample([0, 1, 0xFF, old ^ 1, old ^ 0x10, (old + 1) & 255, (old - 1) & 255], values):
            if value != old:
                yield at, value


def look(pairs: list[tuple[int, int]]) -> subprocess.CompletedProcess[str]:
    """Look at the changed files in a process of its own, which prints the place that it is at."""
    return subprocess.run(
        [sys.executable, "-m", "tests.unit.lake.test_footer_check"],
        input=json.dumps(pairs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def look_at_all(data: bytes) -> None:
    metadata = pq.read_metadata(io.BytesIO(data))
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in range(group.num_columns):
            chunk: Any = group.column(column)
            told = chunk.statistics
            if told is not None:
                assert told.has_min_max in (True, False)
                str(told)
            str((chunk.compression, chunk.encodings, chunk.total_uncompressed_size, chunk.has_dictionary_page))


def test_a_good_footer_is_taken() -> None:
    assert accepted(GOOD)
    check_file(io.BytesIO(GOOD), pq.read_metadata(io.BytesIO(GOOD)))


@pytest.mark.slow  # it looks at two thousand files
def test_what_is_taken_can_be_looked_at() -> None:
    found = [pair for pair in changes(7 if IS_LONG else 1) if accepted(changed(*pair))]
    assert len(found) > 500
    outcome = look(found)
    assert outcome.returncode == 0, (outcome.stdout.splitlines()[-1:], outcome.stderr)


def refused() -> Iterator[tuple[int, int]]:
    return (pair for pair in changes(1) if accepted(changed(*pair)) is False)


@pytest.mark.slow
def test_pyarrow_ends_the_process_at_some_that_are_refused() -> None:
    """If this fails, pyarrow has been mended, and the check is needed no more."""
    assert any(look([pair]).returncode == -6 for pair in refused())


@long
def test_few_are_refused_that_do_no_harm() -> None:
    found = list(refused())
    harmless = sum(look([pair]).returncode == 0 for pair in found[:100])
    assert harmless < 90


def test_a_merge_leaves_such_a_file_as_it_is(tmp_path: Path) -> None:
    spool = Spool(SpoolMemory(tmp_path))
    spool.write(changed(*next(refused())))
    with pytest.raises(Odd, match="the footer of the Parquet file is damaged"):
        InputFile("k", spool, Folder("", "db", "m", 0))
    spool.close()


if __name__ == "__main__":
    for place, byte in json.loads(sys.stdin.read()):
        print(place, byte, flush=True)
        try:
            look_at_all(changed(place, byte))
        except Exception as error:
            print(type(error).__name__)
