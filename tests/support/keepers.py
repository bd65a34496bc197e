"""Who keeps keys: what the tests of exactly once run against.

`KEEPERS` names them. "server" is the real one. "model" is `ModelServer`, which also tells keys that come with other
bytes; it is of the release set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.key_model import ModelServer
from tests.support.lake import numbers
from tests.support.server import Server
from tests.support.sets import long
from tests.support.waiting import wait_until

KEEPERS = ["server", pytest.param("model", marks=long)]


class Keeper(Protocol):
    """Takes records, and tells which."""

    url: str

    def numbers(self, count: int) -> list[int]:
        """Return the column `n` of all records, sorted, once there are `count` or more."""


class _Model:
    def __init__(self, server: ModelServer) -> None:
        self.url = server.url
        self._server = server

    def numbers(self, count: int) -> list[int]:
        found = self._server.numbers()
        assert self._server.conflicts == []
        return found


class _Real:
    def __init__(self, server: Server) -> None:
        self.url = server.url
        self._server = server

    def numbers(self, count: int) -> list[int]:
        wait_until(lambda: len(numbers(self._server.lake)) >= count, f"{count} rows")
        self._server.stop()  # uploads what is left: nothing can be doubled later
        return numbers(self._server.lake)


@contextmanager
def keeper(name: str, directory: Path) -> Iterator[Keeper]:
    """Run one of `KEEPERS`. The real server is stopped by the first call of `numbers`."""
    if name == "model":
        with ModelServer() as model:
            yield _Model(model)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        with Server(directory) as server:
            yield _Real(server)
