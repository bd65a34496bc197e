"""The fixtures of these tests alone: what they import takes seconds.

SQLite runs all tests of each catalogue; the others run those marked `every_catalogue`, and all in the release set.
"""

from collections.abc import Iterator

import pytest

from tests.support.iceberg import iceberg_rest, postgresql, world
from tests.support.sets import IS_LONG
from tests.support.spark_sql import SparkSQL
from tests.tables.grid import committers, handed, make, zombies

__all__ = ["committers", "handed", "iceberg_rest", "make", "postgresql", "world", "zombies"]

CATALOGUES = ("sqlite", "postgresql", "glue", "rest")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        is_for_all = IS_LONG or metafunc.definition.get_closest_marker("every_catalogue") is not None
        metafunc.parametrize("world", CATALOGUES if is_for_all else CATALOGUES[:1], indirect=True)


@pytest.fixture(scope="module")
def spark(iceberg_rest: str) -> Iterator[SparkSQL]:
    running = SparkSQL(iceberg_rest)
    yield running
    running.close()
