"""Go's clients write the model, and it is read back value for value."""

from __future__ import annotations

import math

import pytest

from tests.clients.comparing import as_influxdb_3, assert_rows, without_nan
from tests.clients.flaky import FlakyProxy
from tests.clients.model import BACKSLASH_RECORDS, MANY_RECORDS, SETS, Record, rows
from tests.clients.other_languages import run_go
from tests.clients.python_clients import Target
from tests.support.server import Server

CLIENTS = ("influxdb2", "influxdb3", "influxdb3 v2")
# Both clients write control characters in texts as two letters, which InfluxDB stores so.
_ESCAPED = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def has_nan(record: Record) -> bool:
    """Tell whether the client of InfluxDB 2 refuses a record. That of InfluxDB 3 leaves such fields out."""
    return any(isinstance(value, float) and math.isnan(value) for value in record.fields.values())


@pytest.mark.parametrize(
    ("client", "name"),
    [(client, name) for client in CLIENTS for name in SETS if (client, name) != ("influxdb3", "backslashes in tags")],
)
def test_a_client_writes_what_it_was_given(server: Server, database: str, client: str, name: str) -> None:
    records = [record for record in SETS[name] if client != "influxdb2" or not has_nan(record)]
    run_go(client, Target(server.url, database), records)
    expected = [without_nan(row) for row in rows(records)]
    if name == "texts":
        expected = [{**row, "text": row["text"].translate(_ESCAPED)} for row in expected]
    assert_rows(server, database, database, expected)


def test_influxdb_3_reads_backslashes_of_tags_in_pairs(server: Server, database: str) -> None:
    """The client sends `a\\\\,b` for `a\\,b`, and InfluxDB 3 refuses that line: the comma ends the tag."""
    *good, refused = BACKSLASH_RECORDS
    run_go("influxdb3", Target(server.url, database), good)
    with pytest.raises(AssertionError, match="partial write"):
        run_go("influxdb3", Target(server.url, database), [refused])
    assert_rows(server, database, database, [as_influxdb_3(row) for row in rows(good)])


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
