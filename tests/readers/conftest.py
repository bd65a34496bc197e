"""Lakes for the readers, and the readers themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.readers.adapters import READERS, plain_rows
from tests.readers.isolated import Isolated
from tests.readers.lake import make_hive_lake, make_lake, make_small_lake, shared
from tests.readers.model import Row
from tests.readers.spark import Spark

Read = Callable[[str, Path], list[Row]]
"""Reads a folder by the name of a reader: a key of `READERS`, or `spark VERSION`."""


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake with a database for each table and folder of the model."""
    return shared(tmp_path_factory, "readers", make_lake)


@pytest.fixture(scope="session")
def hive_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake whose layout is `hive`."""
    return shared(tmp_path_factory, "hive-readers", make_hive_lake)


@pytest.fixture(scope="session")
def small_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake with `parquet.encodings = "small"`."""
    return shared(tmp_path_factory, "small-readers", make_small_lake)


@pytest.fixture(scope="session")
def read() -> Iterator[Read]:
    """Open a folder with a reader; skip the test where it is not installed."""
    isolated = Isolated()
    sparks: dict[str, Spark] = {}

    def read(name: str, folder: Path) -> list[Row]:
        if name.startswith("spark "):
            if name not in sparks:
                sparks[name] = Spark(name.removeprefix("spark "))
            return plain_rows(sparks[name].read(folder))
        reader = READERS[name]
        if not reader.is_installed:
            pytest.skip(f"there is no {reader.module} here: {reader.installed_by}")
        return isolated.read(name, folder) if reader.may_crash else reader.read(folder)

    yield read
    isolated.close()
    for spark in sparks.values():
        spark.close()
