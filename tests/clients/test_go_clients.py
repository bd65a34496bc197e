"""Go's clients write the model, and it is read back value for value."""

from __future__ import annotations

import math

import pytest

from tests.clients.comparing import BACKSLASHES, assert_rows, with_failures, without_nan
from tests.clients.flaky import FlakyProxy
from tests.clients.model import MANY_RECORDS, SETS, Record, rows
from tests.clients.other_languages import run_go
from tests.clients.python_clients import Target
from tests.support.server import Server

CLIENTS = ("influxdb2", "influxdb3", "influxdb3 v2")
# What does not work today, by client and set of records.
_FAILURES: dict[tuple[str, str], str] = dict.fromkeys(
    [(client, "backslashes in tags") for client in ("influxdb2", "influxdb3 v2")], BACKSLASHES
)


# Both clients write control characters in texts as two letters, which InfluxDB stores so.
_ESCAPED = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def has_nan(record: Record) -> bool:
    """Tell whether the client of InfluxDB 2 refuses a record. That of InfluxDB 3 leaves such fields out."""
    return any(isinstance(value, float) and math.isnan(value) for value in record.fields.values())


@pytest.mark.parametrize(("client", "name"), with_failures(CLIENTS, SETS, _FAILURES))
def test_a_client_writes_what_it_was_given(server: Server, database: str, client: str, name: str) -> None:
    if client == "influxdb3" and name == "backslashes in tags":
        pytest.skip("InfluxDB 3 refuses what its client sends for them")
    records = [record for record in SETS[name] if client != "influxdb2" or not has_nan(record)]
    run_go(client, Target(server.url, database), records)
    expected = [without_nan(row) for row in rows(records)]
    if name == "texts":
        expected = [{**row, "text": row["text"].translate(_ESCAPED)} for row in expected]
    assert_rows(server, database, database, expected)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_compresses(server: Server, database: str, client: str) -> None:
    run_go(client, Target(server.url, database, gzip=True), MANY_RECORDS)
    assert_rows(server, database, database, rows(MANY_RECORDS))


def test_a_client_repeats_what_was_refused(server: Server, database: str) -> None:
    """The client of InfluxDB 3 does not repeat."""
    with FlakyProxy(server.url, refusals=2) as proxy:
        run_go("influxdb2", Target(proxy.url, database), MANY_RECORDS, batches=True)
    assert proxy.refused == 2
    assert_rows(server, database, database, rows(MANY_RECORDS))
