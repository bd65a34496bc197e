"""Telegraf, run as a program: `make test-clients` builds it with the few plugins that are needed here."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.clients.model import Record
from tests.clients.other_languages import INSTALLED
from tests.clients.python_clients import Target
from tests.support.waiting import WAIT_SECONDS, wait_until

_TELEGRAF: Final = INSTALLED / "go" / "telegraf"

needs_telegraf = pytest.mark.skipif(
    not _TELEGRAF.exists(), reason="Telegraf is not built: `make test-clients` does it where there is Go"
)

OUTPUTS: Final = {
    "influxdb": '[[outputs.influxdb]]\n  urls = ["{url}"]\n  database = "{database}"\n',
    "influxdb_v2": '[[outputs.influxdb_v2]]\n  urls = ["{url}"]\n  bucket = "{database}"\n  organization = "any"\n'
    '  token = "any"\n',
    "http": '[[outputs.http]]\n  url = "{url}/write?db={database}"\n  data_format = "influx"\n'
    "  non_retryable_statuscodes = [400, 413]\n",
}
"""The settings of `docs/clients.md`."""

# Of polled inputs it would round times to the interval's own precision.
_AGENT: Final = """[agent]
  omit_hostname = true
  flush_interval = "200ms"
  interval = "200ms"
  precision = "1ns"
"""


def _line(measurement: str, record: Record) -> str:
    """Write a record as Telegraf's parser reads it."""
    tags = "".join(f",{name}={_escaped(value, ', =')}" for name, value in record.tags.items())
    fields = ",".join(f"{name}={_value(value)}" for name, value in record.fields.items())
    return f"{measurement}{tags} {fields} {record.time_us}000"


def _escaped(text: str, characters: str) -> str:
    for character in characters:
        text = text.replace(character, f"\\{character}")
    return text


def _value(value: object) -> str:
    if isinstance(value, str):
        return '"' + _escaped(value, '\\"') + '"'
    return f"{value}i" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _output(output: str, target: Target) -> str:
    compression = f'  content_encoding = "{"gzip" if target.gzip else "identity"}"\n'
    return OUTPUTS[output].format(url=target.url, database=target.database) + compression


def run_telegraf(output: str, directory: Path, target: Target, records: list[Record]) -> None:
    """Pass the records through Telegraf once."""
    (directory / "lines").write_bytes("".join(f"{_line(target.database, record)}\n" for record in records).encode())
    source = f'[[inputs.file]]\n  files = ["{directory}/lines"]\n  data_format = "influx"\n'
    (directory / "telegraf.conf").write_text(_AGENT + source + _output(output, target))
    done = subprocess.run(
        [_TELEGRAF, "--config", directory / "telegraf.conf", "--once"],
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


class Agent:
    """A Telegraf that runs: it writes what it is sent, and repeats what was refused."""

    def __init__(self, connected: socket.socket, log: Path) -> None:
        self._socket = connected
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def send(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\n" for line in lines).encode())


def _connect(address: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        return None
    return connection


@contextmanager
def running_telegraf(output: str, directory: Path, target: Target) -> Iterator[Agent]:
    """Run Telegraf, and end it."""
    address, log = directory / "socket", directory / "log"
    source = f'[[inputs.socket_listener]]\n  service_address = "unix://{address}"\n  data_format = "influx"\n'
    (directory / "telegraf.conf").write_text(_AGENT + source + _output(output, target))
    with log.open("wb") as file:
        process = subprocess.Popen([_TELEGRAF, "--config", directory / "telegraf.conf"], stdout=file, stderr=file)
    try:
        connection = wait_until(lambda: _connect(address), "Telegraf to listen")
        assert connection is not None
        with connection:
            yield Agent(connection, log)
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)
