"""Inputs of public reports whose columns were shadowed, refused or JSON: each value has a column of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.lake import lake_types
from tests.support.server import Server

T = 1_790_000_000  # 2026-09-21T14:13:20Z


@pytest.fixture(scope="module", params=["arc", "hive"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("columns"), server_workers=1, storage_layout=request.param) as server:
        yield server
        server.stop()


def lines(server: Server, database: str, text: str, rows: int = 1) -> list[dict[str, Any]]:
    assert server.post(f"/write?db={database}", text.encode()).status == 204
    return server.wait_for_rows(rows, database)


def pack(server: Server, database: str, columns: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    body = msgpack.packb({"m": "m", "columns": columns}, datetime=True)
    assert server.post("/write/v2/msgpack", body, {"x-arc-database": database}).status == 202
    return server.wait_for_rows(rows, database)


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "time"}


def test_names_that_differ_in_case_are_told_apart(server: Server) -> None:
    (row,) = lines(server, "case", f'm Host="a",host="b",V=4,v=3 {T}000000000')
    assert without_time(row) == {"Host": "a", "host_2": "b", "V": 4.0, "v_2": 3.0}


def test_of_names_that_differ_in_case_the_first_to_come_keeps_it(server: Server) -> None:
    rows = lines(server, "first", f"m v=3,V=4 {T}000000000\nm W=5,w=6 {T}000000001", 2)
    assert [without_time(row) for row in rows] == [
        {"v": 3.0, "V_2": 4.0, "W": None, "w_2": None},
        {"v": None, "V_2": None, "W": 5.0, "w_2": 6.0},
    ]


def test_a_field_named_time_in_capitals_is_not_shadowed(server: Server) -> None:
    (row,) = lines(server, "clock", f'tasmota Time="2026-09-21T14:13:20",power=5 {T}000000000')
    assert without_time(row) == {"time_field": "2026-09-21T14:13:20", "power": 5.0}


def test_nan_settles_no_type(server: Server) -> None:
    pack(server, "nan", {"time": [T, T + 1], "note": [float("nan")] * 2, "v": [1, 2]}, 2)
    rows = pack(server, "nan", {"time": [T + 10, T + 11], "note": ["pump stopped", "ok"], "v": [3, 4]}, 4)
    assert [without_time(row) for row in rows if row["v"] > 2] == [
        {"note": "pump stopped", "v": 3},
        {"note": "ok", "v": 4},
    ]
    assert lake_types(server.lake, "nan")["note"] == "VARCHAR"


def test_a_messagepack_timestamp_is_a_timestamp_column(server: Server) -> None:
    (row,) = pack(server, "stamp", {"time": [T], "created": [datetime.fromtimestamp(T, UTC)], "v": [1]}, 1)
    assert without_time(row) == {"created": datetime.fromtimestamp(T, UTC), "v": 1}
    assert lake_types(server.lake, "stamp")["created"] == "TIMESTAMP WITH TIME ZONE"


def test_fields_named_as_folders_of_hive_are_kept(server: Server) -> None:
    (row,) = lines(server, "hive", f'energy,site=a hour=7,day="monday",year=1999i,Month=3,kwh=1.5 {T}000000000')
    (folder,) = Path(server.lake, "hive", "energy").iterdir()
    if folder.name.startswith("year="):
        names = {"hour_field": 7.0, "day_field": "monday", "year_field": 1999, "month_field": 3.0}
    else:
        names = {"hour": 7.0, "day": "monday", "year": 1999, "Month": 3.0}
    assert without_time(row) == {"site": "a", **names, "kwh": 1.5}


def test_a_type_stays_over_a_restart_and_a_misfit_has_its_sibling(server: Server) -> None:
    lines(server, "stays", f"m v=1i {T}000000000")
    server.stop()
    server.restart()
    rows = lines(server, "stays", f"m v=2.5 {T + 1}000000000\nm v=18446744073709551615u {T + 2}000000000", 3)
    assert [(row["v"], row["v_f64"], row["v_u64"]) for row in sorted(rows, key=lambda row: row["time"])] == [
        (1, None, None),
        (None, 2.5, None),
        (None, None, 2**64 - 1),
    ]
    types = lake_types(server.lake, "stays")
    assert (types["v"], types["v_f64"], types["v_u64"]) == ("BIGINT", "DOUBLE", "DECIMAL(20,0)")
