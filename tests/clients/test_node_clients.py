"""JavaScript's clients write the model, and it is read back value for value."""

from __future__ import annotations

import math

import pytest

from tests.clients.comparing import assert_rows, without_nan
from tests.clients.flaky import FlakyProxy
from tests.clients.model import MANY_RECORDS, SETS, Record, rows
from tests.clients.other_languages import needs_node, run_node
from tests.clients.python_clients import Target
from tests.support.server import Server
from tests.support.values import same

pytestmark = needs_node

PROGRAMS = ("influxdb2", "influxdb3", "messagepack", "messagepack big")


def sent(program: str, records: list[Record]) -> list[Record]:
    """Leave out what JavaScript has no number for or writes as another, and the NaN that InfluxDB's clients refuse."""
    big = program == "messagepack big"
    lines = program.startswith("influxdb")
    return [
        record
        for record in records
        if not any(
            (isinstance(value, int) and abs(value) > 2**53 and not big)
            or (isinstance(value, float) and math.isnan(value) and lines)
            or same(value, -0.0)  # JavaScript shows it as 0
            for value in record.fields.values()
        )
    ]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_writes_what_it_was_given(server: Server, database: str, program: str, name: str) -> None:
    records = sent(program, SETS[name])
    script, *arguments = program.split()
    run_node(script, Target(server.url, database), records, *arguments)
    expected = rows(records)
    assert_rows(server, database, database, [without_nan(row) for row in expected] if "influx" in program else expected)


@pytest.mark.parametrize("program", ["influxdb2", "influxdb3", "messagepack"])
def test_a_client_compresses(server: Server, database: str, program: str) -> None:
    run_node(program, Target(server.url, database, gzip=True), MANY_RECORDS)
    assert_rows(server, database, database, rows(MANY_RECORDS))


def test_a_client_repeats_what_was_refused(server: Server, database: str) -> None:
    """The client of InfluxDB 3 and fetch do not repeat."""
    with FlakyProxy(server.url, refusals=2) as proxy:
        run_node("influxdb2", Target(proxy.url, database), MANY_RECORDS)
    assert proxy.refused == 2
    assert_rows(server, database, database, rows(MANY_RECORDS))
