"""How `arcpipe status` writes figures: three digits and a unit, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from arcpipe import status_report


@pytest.mark.parametrize(
    ("write", "figure", "text"),
    [
        (status_report._bytes, 0, "0 B"),
        (status_report._bytes, 999, "999 B"),
        (status_report._bytes, 1_000, "1.00 kB"),
        (status_report._bytes, 999_949, "1.00 MB"),
        (status_report._bytes, 21_474_836_480, "21.5 GB"),
        (status_report._per_second, None, "–"),
        (status_report._per_second, 0.0, "0"),
        (status_report._per_second, 0.004, "< 0.01"),
        (status_report._per_second, 9.996, "10.0"),
        (status_report._per_second, 9_999.0, "9,999"),
        (status_report._per_second, 1_234_567.0, "1.23 M"),
        (status_report._latency, None, "–"),
        (status_report._latency, 0.00025, "0.25 ms"),
        (status_report._latency, 0.9994, "999 ms"),
        (status_report._latency, 2.5, "2.5 s"),
        (status_report._latency, float("inf"), "off the scale"),
        (status_report._age, 59.9, "59 s"),
        (status_report._age, 61.0, "1 min 01 s"),
        (status_report._age, 7_260.0, "2 h 01 min"),
        (status_report._age, 200_000.0, "2 d 7 h"),
        (status_report._printable, "a\x1b[2J\nb é", r"a\x1b[2J\nb é"),
    ],
)
def test_figures_and_texts_are_written_for_people(write: Callable[[Any], str], figure: Any, text: str) -> None:
    assert write(figure) == text


def test_a_table_that_is_too_wide_becomes_several_with_the_first_column_in_each() -> None:
    table = status_report._Table(("name", "a", "b", "c"), [("ingest 1", "1" * 20, "2" * 20, "3" * 20)], left=1)
    assert list(status_report._parts(table, 80)) == [table]
    assert [part.columns for part in status_report._parts(table, 60)] == [("name", "a", "b"), ("name", "c")]
    assert [part.rows[0][-1] for part in status_report._parts(table, 10)] == ["1" * 20, "2" * 20, "3" * 20]
    words = status_report._Table(("at", "text"), [("12:00:00", "x" * 200)], left=2)
    assert list(status_report._parts(words, 80)) == [words]
