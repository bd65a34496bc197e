"""`arcpipe lake` shows what is in a store, in a directory and in S3, and finds what is wrong there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import preloaded
from tests.support.lake import lake_files
from tests.support.program import environment
from tests.support.server import Server
from tests.support.stores import local_store, s3_store

T = 1_790_000_000  # 2026-09-21T14:13:20Z
LINES = f'cpu,host=a usage=1i {T}\ncpu,host=b usage=2i {T + 1}\ncpu,host=a usage="n/a" {T + 3600}\n_hidden v=1 {T}\n'


class Lake:
    """A store that a server has written to, and the command."""

    def __init__(self, **settings: object) -> None:
        self._environment = environment(**settings)

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        result = preloaded.run("lake", *arguments, environ=self._environment)
        assert result.returncode == code, result.stderr
        return result

    def rows(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json", code=code).stdout.splitlines()]


@pytest.fixture(params=["directory", "s3"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    s3 = request.param == "s3"
    store = s3_store(request.getfixturevalue("s3"), tmp_path) if s3 else local_store(tmp_path)
    with Server(tmp_path, **store.settings) as server:
        assert server.post("/write?db=Home%20Assistant&precision=s", LINES.encode()).status == 204
        server.stop()
    return Lake(**store.settings)


def test_a_store_is_listed_counted_shown_and_verified(lake: Lake) -> None:
    listed = lake.rows("ls")
    assert [(row["database"], row["measurement"], row["files"]) for row in listed] == [
        ("Home Assistant", "_hidden", 1),
        ("Home Assistant", "cpu", 2),
    ]
    assert (listed[1]["first_hour"], listed[1]["last_hour"]) == ("2026-09-21T14", "2026-09-21T15")
    hours = lake.rows("ls", "Home Assistant", "cpu")
    assert [(row["hour"], row["files"]) for row in hours] == [("2026-09-21T14", 1), ("2026-09-21T15", 1)]
    assert sum(row["bytes"] for row in hours) == listed[1]["bytes"] > 0
    [counted] = lake.rows("count", "Home Assistant", "cpu")
    assert (counted["rows"], counted["files"]) == (3, 2)
    assert (counted["first_time"], counted["last_time"]) == (
        "2026-09-21T14:13:20.000000Z",
        "2026-09-21T15:13:20.000000Z",
    )
    assert lake.rows("head", "Home Assistant", "cpu", "-n", "2") == [
        {"time": "2026-09-21T15:13:20Z", "host": "a", "usage": None, "usage_str": "n/a"},
        {"time": "2026-09-21T14:13:21Z", "host": "b", "usage": 2, "usage_str": None},
    ]
    assert [row["problems"] for row in lake.rows("verify")] == [[], [], []]
    assert "3 files, 4 rows" in lake.run("verify").stdout
    assert lake.run("head", "Home Assistant", "_hidden").stdout.split() == ["time", "v", "2026-09-21T14:13:20Z", "1.0"]


def test_what_is_not_there_is_said(lake: Lake) -> None:
    assert lake.run("ls", "nobody").stdout.startswith("No files are in ")
    assert lake.run("head", "Home Assistant", "mem").stdout.startswith("No files of 'mem' in database 'Home Assistant'")
    assert "is instead of" in lake.run("verify", "db", "--prefix", "x", code=2).stderr


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert server.post("/write?precision=s", LINES.encode()).status == 204
        server.stop()
    lake = Lake(storage_url=f"file://{server.lake}")
    first, *_ = [file for file in lake_files(server.lake) if "cpu" in file.name]
    first.write_bytes(first.read_bytes()[:-20])
    (server.lake / "notes.txt").write_text("mine")
    [bad] = [row for row in lake.rows("verify", code=1) if row["problems"]]
    assert bad["key"] == str(first.relative_to(server.lake))
    told = lake.run("verify", code=1)
    assert f"{bad['key']}: 1 problems\n  it cannot be read: " in told.stdout
    assert "1 files have problems. Keep them aside" in told.stderr
    assert "1 objects are not named as arcpipe's files" in told.stderr
    assert "1 files are not counted" in lake.run("count", code=1).stderr
