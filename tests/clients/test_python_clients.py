"""The Python clients write the model through their own API, and it is read back value for value."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.comparing import as_influxdb_3, assert_rows
from tests.clients.flaky import FlakyProxy
from tests.clients.model import BACKSLASH_RECORDS, MANY_RECORDS, NAN_RECORDS, SETS, rows
from tests.clients.python_clients import PYTHON_CLIENTS, PythonClient, Target
from tests.support.server import Server


def assert_written(server: Server, client: PythonClient, database: str, expected: list[dict[str, Any]]) -> None:
    assert_rows(
        server,
        database if client.has_databases else "default",
        database,
        [client.alters(row) for row in expected],
    )


@pytest.mark.parametrize(
    ("name", "records"),
    [(name, records) for name, client in PYTHON_CLIENTS.items() for records in SETS if records not in client.without],
)
def test_a_client_writes_what_it_was_given(server: Server, database: str, name: str, records: str) -> None:
    client = PYTHON_CLIENTS[name]
    if records == "nan" and client.sends_nan:
        with pytest.raises(Exception, match=r"(?i)partial write: .*float=nan"):
            client.write(Target(server.url, database), NAN_RECORDS)
        assert_written(server, client, database, rows([NAN_RECORDS[0], NAN_RECORDS[2]]))
    else:
        client.write(Target(server.url, database), SETS[records])
        assert_written(server, client, database, rows(SETS[records]))


@pytest.mark.parametrize("name", ["influxdb3-python", "influxdb3-python, batches"])
def test_influxdb_3_reads_backslashes_of_tags_in_pairs(server: Server, database: str, name: str) -> None:
    """Its client sends `a\\\\,b` for `a\\,b`, and InfluxDB 3 refuses that line: the comma ends the tag."""
    *good, refused = BACKSLASH_RECORDS
    client = PYTHON_CLIENTS[name]
    client.write(Target(server.url, database), good)
    with pytest.raises(Exception, match=r"(?i)partial write"):
        client.write(Target(server.url, database), [refused])
    assert_written(server, client, database, [as_influxdb_3(row) for row in rows(good)])


@pytest.mark.parametrize("name", [name for name, client in PYTHON_CLIENTS.items() if client.has_gzip])
def test_a_client_compresses(server: Server, database: str, name: str) -> None:
    client = PYTHON_CLIENTS[name]
    client.write(Target(server.url, database, gzip=True), MANY_RECORDS)
    assert_written(server, client, database, rows(MANY_RECORDS))


@pytest.mark.parametrize("name", [name for name, client in PYTHON_CLIENTS.items() if client.retries])
def test_a_client_repeats_what_was_refused(server: Server, database: str, name: str) -> None:
    client = PYTHON_CLIENTS[name]
    with FlakyProxy(server.url, refusals=2) as proxy:
        client.write(Target(proxy.url, database), SETS["types"])
    assert proxy.refused == 2
    assert_written(server, client, database, rows(SETS["types"]))
