"""Telegraf's outputs write the model, with the settings of `docs/clients.md`, and it is read back value for value."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.comparing import assert_rows
from tests.clients.flaky import FlakyProxy
from tests.clients.model import FIRST_US, MANY_RECORDS, SETS, rows
from tests.clients.python_clients import Target
from tests.clients.telegraf import OUTPUTS, needs_telegraf, run_telegraf, running_telegraf
from tests.support.server import Server

pytestmark = needs_telegraf


@pytest.mark.parametrize("name", [name for name in SETS if name != "nan"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_writes_what_it_was_given(
    server: Server, database: str, tmp_path: Path, output: str, name: str
) -> None:
    run_telegraf(output, tmp_path, Target(server.url, database), SETS[name])
    assert_rows(server, database, database, rows(SETS[name]))


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_compresses(server: Server, database: str, tmp_path: Path, output: str) -> None:
    run_telegraf(output, tmp_path, Target(server.url, database, gzip=True), MANY_RECORDS)
    assert_rows(server, database, database, rows(MANY_RECORDS))


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_repeats_what_was_refused(server: Server, database: str, tmp_path: Path, output: str) -> None:
    with (
        FlakyProxy(server.url, refusals=2) as proxy,
        running_telegraf(output, tmp_path, Target(proxy.url, database)) as agent,
    ):
        agent.send(f"{database} n=1i {FIRST_US}000", f"{database} n=2i {FIRST_US + 1}000")
        assert_rows(server, database, database, [{"n": 1}, {"n": 2}])
    assert proxy.refused == 2


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_bad_line_costs_that_line_alone(server: Server, database: str, tmp_path: Path, output: str) -> None:
    """InfluxDB refuses a tag `time`, too. The good lines beside it are written once, and later ones go on."""
    with running_telegraf(output, tmp_path, Target(server.url, database)) as agent:
        agent.send(f"{database} n=1i {FIRST_US}000", f"{database},time=x n=2i {FIRST_US + 1}000")
        server.wait_for_rows(1, database, database)
        agent.send(f"{database} n=3i {FIRST_US + 2}000")
        server.wait_for_rows(2, database, database)
        assert "400" in agent.log
    assert_rows(server, database, database, [{"n": 1}, {"n": 3}])
