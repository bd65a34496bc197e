"""The Python clients write the model through their own API, and it is read back value for value."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.comparing import BACKSLASHES, assert_rows, with_failures
from tests.clients.flaky import FlakyProxy
from tests.clients.model import MANY_RECORDS, NAN_RECORDS, SETS, rows
from tests.clients.python_clients import PYTHON_CLIENTS, PythonClient, Target
from tests.support.server import Server

# What does not work today, by client and set of records.
_FAILURES: dict[tuple[str, str], str] = dict.fromkeys(
    [
        ("influxdb", "backslashes in tags"),
        ("influxdb-client", "backslashes in tags"),
        ("influxdb-client, batches", "backslashes in tags"),
        ("influxdb3-python, v2 API", "backslashes in tags"),
        ("arc-tsdb-client, lines", "backslashes in tags"),
    ],
    BACKSLASHES,
)


def assert_written(server: Server, client: PythonClient, database: str, expected: list[dict[str, Any]]) -> None:
    assert_rows(
        server,
        database if client.has_databases else "default",
        database,
        [client.alters(row) for row in expected],
    )


@pytest.mark.parametrize(("name", "records"), with_failures(PYTHON_CLIENTS, SETS, _FAILURES))
def test_a_client_writes_what_it_was_given(server: Server, database: str, name: str, records: str) -> None:
    client = PYTHON_CLIENTS[name]
    if records in client.without:
        pytest.skip("the client cannot write them")
    if records == "nan" and client.sends_nan:
        with pytest.raises(Exception, match=r"(?i)partial write: .*float=nan"):
            client.write(Target(server.url, database), NAN_RECORDS)
        assert_written(server, client, database, rows([NAN_RECORDS[0], NAN_RECORDS[2]]))
    else:
        client.write(Target(server.url, database), SETS[records])
        assert_written(server, client, database, rows(SETS[records]))


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
