"""Inputs that were seen to give silently wrong data, or to be refused where InfluxDB takes them.

An expected failure names what is wrong today; it fails when it passes. The layout `hive` has its case in
`tests/readers/test_readers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.http import Response
from tests.support.lake import lake_files, lake_types
from tests.support.server import Server

INPUTS = Path(__file__).with_name("inputs")
T_US = 1_790_000_000_000_000  # 2026-09-21T14:13:20Z
SENTINEL = b"sentinel v=1 1790000000000000000"

V1 = "/write?db={}"
V2 = "/api/v2/write?bucket={}"
MESSAGEPACK = "/write/v2/msgpack?db={}"

_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("cases"), server_workers=1) as server:
        yield server
        server.stop()


@pytest.fixture
def database() -> str:
    """A name that nobody had before."""
    return f"case-{next(_numbers)}"


def today(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


def send(server: Server, path: str, database: str, name: str) -> Response:
    return server.post(path.format(database), (INPUTS / name).read_bytes())


def only_row(server: Server, database: str) -> dict[str, Any]:
    (row,) = server.wait_for_rows(1, database)
    return row


def assert_nothing_written(server: Server, database: str) -> None:
    """What was written later is there, alone."""
    assert server.post(V1.format(database), SENTINEL).status == 204
    server.wait_for_rows(1, database, "sentinel")
    assert [path.name for path in (server.lake / database).iterdir()] == ["sentinel"]


# Times


@today("a time outside of the range becomes one inside, or the time of arrival")
@pytest.mark.parametrize(
    ("name", "path"),
    [("f1_lp_ms_sent_as_s.lp", V1 + "&precision=s"), ("f1_lp_ns_sent_as_ms.lp", V2 + "&precision=ms")],
)
def test_a_time_of_another_precision_is_refused(server: Server, database: str, name: str, path: str) -> None:
    answer = send(server, path, database, name)
    assert answer.status == 400
    text = answer.body.decode()
    assert (INPUTS / name).read_text().split()[-1] in text
    assert "precision" in text
    assert_nothing_written(server, database)


@today("floats are read as seconds, whatever their size: the time of arrival, and the float in _rescued_data")
@pytest.mark.parametrize("name", ["f1b_float_ms_time.msgpack", "f1b_float_ms_row.msgpack"])
def test_a_float_is_read_by_its_size(server: Server, database: str, name: str) -> None:
    """JavaScript packs `Date.now()` as float64."""
    assert send(server, MESSAGEPACK, database, name).status == 202
    assert only_row(server, database) == {"time": T_US + 123_000, "v": 1}


@today("text is no time: in a column it becomes the time of arrival and JSON in _rescued_data, in a row it is a 400")
@pytest.mark.parametrize("name", ["f1c_string_time.msgpack", "f1c_string_t_row.msgpack"])
def test_iso_8601_text_is_a_time(server: Server, database: str, name: str) -> None:
    assert send(server, MESSAGEPACK, database, name).status == 202
    assert only_row(server, database) == {"time": 1_789_948_800_000_000, "v": 1}


@today("a timestamp in another column than time is JSON in _rescued_data")
def test_a_messagepack_timestamp_is_a_timestamp_column(server: Server, database: str) -> None:
    assert send(server, MESSAGEPACK, database, "q_created_timestamp.msgpack").status == 202
    row = only_row(server, database)
    assert row == {"time": T_US, "created": datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC), "v": 1}
    assert lake_types(server.lake, database)["created"] == "TIMESTAMP WITH TIME ZONE"


# Escapes


@today("backslashes are read by the rule of InfluxDB 3 on every path: two of them are one")
@pytest.mark.parametrize("path", [V1, V2], ids=["InfluxDB 1", "InfluxDB 2"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f2_backslash_space.lp", {"path": r"C:\ Program Files\x"}),
        ("f2_backslash_comma.lp", {"q": r"a\,b"}),
        ("f2_backslash_equals.lp", {"q": r"a\=b"}),
        ("f2_unc.lp", {"path": r"\\nas\share"}),
    ],
)
def test_a_backslash_is_read_as_its_generation_does(
    server: Server, database: str, name: str, value: dict[str, str], path: str
) -> None:
    """InfluxDB 1 and 2 look only at the character before."""
    assert send(server, path, database, name).status == 204
    assert only_row(server, database) == {"time": T_US, **value, "up": 1}


# Names


@today("a field `time` is refused")
def test_a_field_named_time_is_kept(server: Server, database: str) -> None:
    """Telegraf's libvirt input sends it."""
    assert send(server, V2, database, "f3_libvirt_time.lp").status == 204
    row = only_row(server, database)
    assert row.pop("time") == T_US
    assert row == {"domain_name": "vm1", "system": 1, "user": 3, "time_field": 2}


@today("both are columns, which DuckDB takes for one")
def test_names_that_differ_in_case_are_told_apart(server: Server, database: str) -> None:
    assert send(server, V1, database, "f4_case_same_row.lp").status == 204
    row = only_row(server, database)
    (file,) = lake_files(server.lake, database)
    names = pq.read_schema(file).names
    assert list(row) == names  # but DuckDB's own names for a second one
    assert len({name.lower() for name in names}) == len(names)
    row.pop("time")
    assert sorted(map(str, row.values())) == ["3.0", "4.0", "a", "b"]


@today("DuckDB takes `Time` and `time` for one")
def test_a_field_named_time_in_capitals_is_not_shadowed(server: Server, database: str) -> None:
    assert send(server, V1, database, "f4_time_case.lp").status == 204
    row = only_row(server, database)
    assert row.pop("time") == T_US
    assert row == {"power": 5.0, "time_field": "2026-09-21T14:13:20"}


# Types


@today("NaN makes a column f64 for ever; texts become JSON in _rescued_data")
def test_nan_settles_no_type(server: Server, database: str) -> None:
    assert send(server, MESSAGEPACK, database, "f6_nan_first.msgpack").status == 202
    server.wait_for_rows(2, database)
    assert send(server, MESSAGEPACK, database, "f6_then_text.msgpack").status == 202
    rows = server.wait_for_rows(4, database)
    assert [row["note"] for row in rows if row["v"] > 2] == ["pump stopped", "ok"]
    assert lake_types(server.lake, database)["note"] == "VARCHAR"
    assert "_rescued_data" not in rows[0]


# HTTP


@today("204, and nothing is written")
@pytest.mark.parametrize("name", ["f7_http10_no_length.raw", "f7_http11_no_length.raw"])
def test_a_post_without_a_length_is_refused(server: Server, name: str) -> None:
    with server.client() as client:
        client.send((INPUTS / name).read_bytes())
        assert client.receive().status == 411


@today("400: a blank in Host")
def test_blanks_behind_the_value_of_a_header_are_no_part_of_it(server: Server) -> None:
    """RFC 9112, section 5.1."""
    with server.client() as client:
        client.send((INPUTS / "f9_host_ows.raw").read_bytes())
        assert client.receive().status == 204
    assert only_row(server, "ows")["v"] == 1.0


def test_every_input_has_its_test() -> None:
    tests = Path(__file__).read_text() + (Path(__file__).parents[1] / "readers" / "lake.py").read_text()
    assert [path.name for path in INPUTS.iterdir() if path.name not in tests] == []
