"""Inputs that once gave silently wrong data, or were refused where InfluxDB takes them, with their right values.

The layout `hive` has its case in `tests/readers/test_readers.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
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
V3 = "/api/v3/write_lp?db={}"
MESSAGEPACK = "/write/v2/msgpack?db={}"


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


@pytest.mark.parametrize(
    ("name", "path"),
    [("f1_lp_ms_sent_as_s.lp", V1 + "&precision=s"), ("f1_lp_ns_sent_as_ms.lp", V2 + "&precision=ms")],
)
def test_a_time_of_another_precision_is_refused(server: Server, database: str, name: str, path: str) -> None:
    answer = send(server, path, database, name)
    assert answer.status == 400
    text = answer.body.decode()
    assert (INPUTS / name).read_text().split()[-1] in text
    assert f"precision={path.rpartition('=')[2]}" in text
    assert "out of the range" in text
    assert_nothing_written(server, database)


@pytest.mark.parametrize("name", ["f1b_float_ms_time.msgpack", "f1b_float_ms_row.msgpack"])
def test_a_float_is_read_by_its_size(server: Server, database: str, name: str) -> None:
    """JavaScript packs `Date.now()` as float64."""
    assert send(server, MESSAGEPACK, database, name).status == 202
    assert only_row(server, database) == {"time": T_US + 123_000, "v": 1}


@pytest.mark.parametrize("name", ["f1c_string_time.msgpack", "f1c_string_t_row.msgpack"])
def test_iso_8601_text_is_a_time(server: Server, database: str, name: str) -> None:
    assert send(server, MESSAGEPACK, database, name).status == 202
    assert only_row(server, database) == {"time": 1_789_948_800_000_000, "v": 1}


@pytest.mark.parametrize("name", ["f1c_string_time.msgpack", "f1c_string_t_row.msgpack"])
@pytest.mark.parametrize("text", ["", "now", "2026-13-21T00:00:00Z", "1790000000"])
def test_other_text_is_refused(server: Server, database: str, name: str, text: str) -> None:
    value = msgpack.unpackb((INPUTS / name).read_bytes())
    if "t" in value:
        value["t"] = text
    else:
        value["columns"]["time"] = [text]
    answer = server.post(MESSAGEPACK.format(database), msgpack.packb(value))
    assert (answer.status, "time" in answer.body.decode()) == (400, True)
    assert_nothing_written(server, database)


def test_a_messagepack_timestamp_is_a_timestamp_column(server: Server, database: str) -> None:
    assert send(server, MESSAGEPACK, database, "q_created_timestamp.msgpack").status == 202
    row = only_row(server, database)
    assert row == {"time": T_US, "created": datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC), "v": 1}
    assert lake_types(server.lake, database)["created"] == "TIMESTAMP WITH TIME ZONE"


# Escapes


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


@pytest.mark.parametrize(
    ("tag", "value"), [(r"\\\\nas\share", r"\\nas\share"), (r"C:\\\ Program\ Files\x", r"C:\ Program Files\x")]
)
def test_the_rule_of_influxdb_3_stays_on_its_own_path(server: Server, database: str, tag: str, value: str) -> None:
    """Two backslashes are one there."""
    line = f"svc,path={tag} up=1i 1790000000000000000"
    assert server.post(V3.format(database), line.encode()).status == 204
    assert only_row(server, database) == {"time": T_US, "path": value, "up": 1}


# Names


def test_a_field_named_time_is_kept(server: Server, database: str) -> None:
    """Telegraf's libvirt input sends it."""
    assert send(server, V2, database, "f3_libvirt_time.lp").status == 204
    row = only_row(server, database)
    assert row.pop("time") == T_US
    assert row == {"domain_name": "vm1", "system": 1, "user": 3, "time_field": 2}


def test_names_that_differ_in_case_are_told_apart(server: Server, database: str) -> None:
    assert send(server, V1, database, "f4_case_same_row.lp").status == 204
    row = only_row(server, database)
    (file,) = lake_files(server.lake, database)
    schema = pq.read_schema(file)
    assert list(row) == schema.names  # but DuckDB's own names for a second one
    assert row.pop("time") == T_US
    by_sender = {(schema.field(name).metadata or {}).get(b"arcpipe.name", name.encode()).decode(): name for name in row}
    assert {sent: row[name] for sent, name in by_sender.items()} == {"Host": "a", "host": "b", "V": 4.0, "v": 3.0}
    assert row == {"Host": "a", "host_2": "b", "V": 4.0, "v_2": 3.0}


def test_a_field_named_time_in_capitals_is_not_shadowed(server: Server, database: str) -> None:
    assert send(server, V1, database, "f4_time_case.lp").status == 204
    row = only_row(server, database)
    assert row.pop("time") == T_US
    assert row == {"power": 5.0, "time_field": "2026-09-21T14:13:20"}


# Types


def test_nan_settles_no_type(server: Server, database: str) -> None:
    assert send(server, MESSAGEPACK, database, "f6_nan_first.msgpack").status == 202
    server.wait_for_rows(2, database)
    assert send(server, MESSAGEPACK, database, "f6_then_text.msgpack").status == 202
    rows = server.wait_for_rows(4, database)
    assert [row["note"] for row in rows if row["v"] > 2] == ["pump stopped", "ok"]
    assert lake_types(server.lake, database)["note"] == "VARCHAR"
    assert "_rescued_data" not in rows[0]


# HTTP


@pytest.mark.parametrize("name", ["f7_http10_no_length.raw", "f7_http11_no_length.raw"])
def test_a_post_without_a_length_is_refused(server: Server, name: str) -> None:
    with server.client() as client:
        client.send((INPUTS / name).read_bytes())
        assert client.receive().status == 411


@pytest.mark.parametrize(("path", "status"), [(V1, 204), (V2, 400), (V3, 400)])
def test_a_length_of_0_is_a_probe(server: Server, database: str, path: str, status: int) -> None:
    """Each path answers it as its generation does, without 411."""
    with server.client() as client:
        client.send(f"POST {path.format(database)} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert client.receive().status == status
    assert_nothing_written(server, database)


def test_blanks_behind_the_value_of_a_header_are_no_part_of_it(server: Server) -> None:
    """RFC 9112, section 5.1."""
    with server.client() as client:
        client.send((INPUTS / "f9_host_ows.raw").read_bytes())
        assert client.receive().status == 204
    assert only_row(server, "ows")["v"] == 1.0


def test_every_input_has_its_test() -> None:
    tests = Path(__file__).read_text() + (Path(__file__).parents[1] / "readers" / "lake.py").read_text()
    assert [path.name for path in INPUTS.iterdir() if path.name not in tests] == []
