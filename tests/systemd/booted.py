"""A booted machine for a module of tests, and what they do with it: write files, post records, look for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.support.http import Client, pack
from tests.support.lake import numbers
from tests.support.waiting import wait_until
from tests.systemd.machine import BUILD, Machine, what_is_missing

V2: Final = "/write/v2/msgpack"
_DROP_IN: Final = "/etc/systemd/system/arcpipe.service.d/test.conf"

on_demand = pytest.mark.skipif(
    os.environ.get("ARCPIPE_TEST_SYSTEMD") != "1", reason="boots a machine: `make test-systemd` runs it"
)
"""Marks modules that take minutes, and root."""


@contextmanager
def booted(install: Callable[[Machine], None], *lines: str) -> Iterator[Machine]:
    """Boot a machine whose service has a free port.

    Args:
        install: puts into the tree what is to be there before the boot.
        lines: more of the service's section.
    """
    if missing := what_is_missing():
        pytest.exit(f"no machine can be booted here: {missing}", returncode=1)  # it was asked for, so not skipped
    BUILD.mkdir(parents=True, exist_ok=True)
    machine = Machine()
    try:
        machine.prepare()
        install(machine)
        write(
            machine,
            _DROP_IN,
            "[Service]\n"
            f"Environment=ARCPIPE_SERVER_PORT={machine.port} ARCPIPE_FLUSH_MAX_AGE_SECONDS=0.5\n"
            "Environment=ARCPIPE_WAL_MIN_FREE_MB=16\n" + "".join(f"{line}\n" for line in lines),
        )
        machine.boot()
        yield machine
        print(machine.journal()[-20_000:])
    finally:
        machine.end()


def write(machine: Machine, path: str, text: str) -> None:
    """Write a file of the machine."""
    target = machine.tree / path.removeprefix("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def post(machine: Machine, number: int) -> int:
    """Post a record with a number, and return the status."""
    with Client(machine.url) as client:
        body = pack({"m": "counted", "columns": {"n": [number]}})
        return client.request("POST", V2, body).status


def wait_for_numbers(machine: Machine, expected: list[int]) -> None:
    """Wait for all of them, once each, and no others."""
    wait_until(lambda: len(numbers(machine.lake)) >= len(expected), f"{len(expected)} rows", 60)
    assert numbers(machine.lake) == sorted(expected)
