"""Tables as a user meets them: records by HTTP, rows in Iceberg and Delta tables, each once as two readers count."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from tests.support import preloaded
from tests.support.lake import lake_files
from tests.support.program import environment
from tests.support.server import Server
from tests.support.sets import long
from tests.support.table_readers import numbers_in
from tests.support.waiting import wait_until

FORMATS = ("iceberg", "delta")
# What concerns no format is shown with the one that loads faster; with the other one in the release set.
MOSTLY_DELTA = [pytest.param("iceberg", marks=long), "delta"]
MOMENT = 1_767_225_600  # 2026-01-01T00:00:00Z
_NEVER = 3_600  # seconds between two rounds, where a test has them begin otherwise


def serving(directory: Path, format_name: str, **settings: object) -> Server:
    options = {"tables_format": format_name, "tables_commit_interval_seconds": 0.2, "server_workers": 1, **settings}
    return Server(directory, **options)


def write(server: Server, *numbers: int, measurement: str = "cpu", **more: Any) -> None:
    columns = {"time": [MOMENT + one for one in numbers], "n": list(numbers), **more}
    server.write({"m": measurement, "columns": columns})


def rows(server: Server, format_name: str, measurement: str = "cpu") -> list[int]:
    return numbers_in(format_name, server.lake, server.wal, measurement)


def wait_for_rows(server: Server, format_name: str, wanted: list[int], measurement: str = "cpu") -> None:
    wait_until(lambda: len(rows(server, format_name, measurement)) >= len(wanted), f"{len(wanted)} rows in the table")
    assert rows(server, format_name, measurement) == wanted


def arcpipe(server: Server, *arguments: str, code: int = 0) -> str:
    """Run a command with the settings of the server; return what it said."""
    done = preloaded.run(
        *arguments, directory=server.directory, environ=environment(**server.settings) | server.variables
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def issues(server: Server) -> dict[str, str]:
    found = json.loads(server.get("/api/v1/status").body)["issues"]
    return {issue["code"]: issue["message"] for issue in found}


def committer(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.get("/api/v1/status").body)["instance"]["committer"]
    return found


@pytest.mark.parametrize("format_name", FORMATS)
def test_each_row_is_in_its_table_once_whatever_is_killed(tmp_path: Path, format_name: str) -> None:
    with serving(tmp_path, format_name) as server:
        write(server, *range(10))
        write(server, *range(5), measurement="mem")
        wait_for_rows(server, format_name, list(range(10)))
        wait_for_rows(server, format_name, list(range(5)), "mem")
        assert wait_until(lambda: committer(server)["alive"], "the committer")
        dead = server.kill("committer")
        write(server, *range(10, 20), host=["a"] * 10)  # a column that is new
        server.kill("uploader")
        server.wait_for_successor("committer", dead)
        wait_for_rows(server, format_name, list(range(20)))
        write(server, *range(20, 30))
        server.kill_all()
        server.restart()
        wait_for_rows(server, format_name, list(range(30)))
        server.stop()
        assert "stopped; everything is uploaded" in server.log
    assert "2 tables, 0 of them with problems." in arcpipe(server, "tables", "verify")
    assert len(lake_files(server.lake)) == sum(
        json.loads(line)["files"] for line in arcpipe(server, "tables", "ls", "--json").splitlines()
    )
    said = arcpipe(server, "tables", "show", "default", "cpu")
    assert all(word in said for word in ("markers:", "columns:", "host", "time"))


@pytest.mark.parametrize("format_name", MOSTLY_DELTA)
def test_a_stop_commits_what_is_uploaded(tmp_path: Path, format_name: str) -> None:
    with serving(tmp_path, format_name, tables_commit_interval_seconds=_NEVER) as server:
        wait_until(lambda: committer(server)["rounds"] == 1, "the first round, which finds nothing")
        write(server, *range(10))
        wait_until(lambda: lake_files(server.lake), "the upload")
        assert rows(server, format_name) == []
        server.stop()
        assert "stopped; everything is uploaded" in server.log
        assert rows(server, format_name) == list(range(10))


def test_commit_now_does_not_wait_for_the_next_round(tmp_path: Path) -> None:
    with serving(tmp_path, "delta", tables_commit_interval_seconds=_NEVER) as server:
        wait_until(lambda: committer(server)["rounds"] == 1, "the first round, which finds nothing")
        write(server, *range(10))
        wait_until(lambda: list((server.wal / "tables").glob("0*.json")), "the handover")
        assert "1 commits with 1 files and 10 rows." in arcpipe(server, "tables", "commit-now")
        assert rows(server, "delta") == list(range(10))
        assert "0 commits" in arcpipe(server, "tables", "commit-now")
        server.stop()


def test_a_lake_from_before_there_were_tables_is_imported(tmp_path: Path) -> None:
    with serving(tmp_path, "none") as server:
        for number in range(3):
            files = len(lake_files(server.lake))
            write(server, number)
            wait_until(functools.partial(_has_more, server, files), "the upload")
        server.stop()
        server.settings["tables_format"] = "delta"
        server.start()
        write(server, 3)
        wait_for_rows(server, "delta", [3])
        assert "is in no table; `arcpipe tables import` adds it" in arcpipe(server, "tables", "verify", code=1)
        assert "default.cpu: 3 files added" in arcpipe(server, "tables", "import")
        assert "Each file is in a table" in arcpipe(server, "tables", "import")
        assert rows(server, "delta") == [0, 1, 2, 3]
        assert "1 tables, 0 of them with problems." in arcpipe(server, "tables", "verify")
        server.stop()


def _has_more(server: Server, files: int) -> bool:
    return len(lake_files(server.lake)) > files


@pytest.mark.parametrize(
    ("format_name", "with_catalogue"),
    [pytest.param("iceberg", False, marks=long), pytest.param("iceberg", True, marks=long), ("delta", False)],
)
def test_a_restored_copy_of_the_wal_directory_stops_loudly(
    tmp_path: Path, format_name: str, with_catalogue: bool
) -> None:
    """It does not know which batches its later life had committed, so it commits nothing, and says so.

    A SQLite catalogue in it goes back, too, and then forgets what the lake has.
    """
    with serving(tmp_path, format_name) as server:
        write(server, *range(10))
        wait_for_rows(server, format_name, list(range(10)))
        server.stop()
        shutil.copytree(server.wal, tmp_path / "backup")
        server.start()
        write(server, *range(10, 20))
        wait_for_rows(server, format_name, list(range(20)))
        server.stop()
        catalogue = Path("tables", "iceberg.db")
        if format_name == "iceberg" and not with_catalogue:  # as one on another machine, which nobody restored
            shutil.copy(server.wal / catalogue, tmp_path / "backup" / catalogue)
        shutil.rmtree(server.wal)
        (tmp_path / "backup").rename(server.wal)
        server.start()
        write(server, *range(20, 30))
        wait_until(lambda: "tables_stopped" in issues(server), "the issue")
        reason = "was restored from an old copy" if with_catalogue else "never issued"
        assert reason in issues(server)["tables_stopped"]
        said = f"nothing is committed to tables: table .* {reason}"
        wait_until(lambda: re.search(said, server.log), "the log line, which may come after the issue")
        wait_until(lambda: len(lake_files(server.lake)) == 3, "the upload goes on")
        if with_catalogue:
            return
        assert rows(server, format_name) == list(range(20))
        assert "marker" in arcpipe(server, "tables", "verify", code=1)
        server.stop()
        assert "1 batches that are not committed to tables" in server.log


def test_a_committer_that_is_stopped_and_revived_commits_nothing_twice(tmp_path: Path) -> None:
    """A zombie: it is replaced while it sleeps, and woken up in the middle of what its successor did."""
    with serving(tmp_path, "delta") as server:
        write(server, *range(10))
        wait_for_rows(server, "delta", list(range(10)))
        pid = server.pids()["committer"]
        os.kill(pid, signal.SIGSTOP)
        write(server, *range(10, 20))
        wait_until(lambda: len(lake_files(server.lake)) == 2, "the upload")
        os.kill(pid, signal.SIGCONT)
        write(server, *range(20, 30))
        wait_for_rows(server, "delta", list(range(30)))
        server.stop()


def test_commands_of_tables_need_tables(tmp_path: Path) -> None:
    server = serving(tmp_path, "none")
    assert 'tables.format is "none": there are no tables' in arcpipe(server, "tables", "ls", code=2)


@pytest.mark.parametrize("format_name", MOSTLY_DELTA)
def test_commands_name_a_table_that_cannot_be_read_and_go_on(tmp_path: Path, format_name: str) -> None:
    metadata = "_iceberg/default/{}/metadata/*.json" if format_name == "iceberg" else "default/{}/_delta_log/*.json"
    with serving(tmp_path, format_name) as server:
        for name in ("cpu", "disk", "long" * 60):  # only the table's metadata tells the last name
            write(server, 1, measurement=name)
        wait_until(lambda: len({path.parent for path in server.lake.glob(metadata.format("*"))}) == 3, "three tables")
        server.stop()
    for name in ("cpu", "long*"):
        for path in server.lake.glob(metadata.format(name)):
            path.write_text("not JSON")
    rows = [json.loads(line) for line in arcpipe(server, "tables", "ls", "--json", code=1).splitlines()]
    listed = {row["measurement"]: row for row in rows}
    assert (listed["disk"]["files"], listed["disk"]["problem"]) == (1, None)
    assert len(listed) == 3
    for name in listed.keys() - {"disk"}:
        assert listed[name]["files"] is None
        assert re.search("cannot read|damaged|is no JSON", listed[name]["problem"])
    assert "default/long" in str(listed) or "longlong" in str(listed)
    for command, done in (("maintain", "default.disk: 0 metadata files"), ("verify", "default.disk: ok")):
        said = arcpipe(server, "tables", command, code=1)
        assert done in said
        assert "cpu" in said
        assert "longlong" in said
    assert "0 files added" not in arcpipe(server, "tables", "import")


@long
@pytest.mark.parametrize("format_name", FORMATS)
def test_compaction_and_retention_go_by_the_table(tmp_path: Path, format_name: str) -> None:
    """Readers see each row once at any time; the objects stay for readers of earlier states."""
    with serving(tmp_path, format_name) as server:
        for number in range(4):
            files = len(lake_files(server.lake))
            write(server, *range(number * 10, number * 10 + 10))
            wait_until(functools.partial(_has_more, server, files), "the upload")
        wait_for_rows(server, format_name, list(range(40)))
        for path in lake_files(server.lake):  # older than any request that may be late
            os.utime(path, (path.stat().st_mtime - 3_600,) * 2)
        assert "4 files became 1" in arcpipe(server, "compact")
        assert rows(server, format_name) == list(range(40))
        [row] = map(json.loads, arcpipe(server, "tables", "ls", "--json").splitlines())
        assert row["files"] == 1
        assert len(lake_files(server.lake)) == 5
        assert "4 are of earlier states of the table" in arcpipe(server, "tables", "verify")
        assert "Each file is in a table" in arcpipe(server, "tables", "import")
        assert "Nothing is worth merging" in arcpipe(server, "compact")
        write(server, *range(40, 50))
        wait_for_rows(server, format_name, list(range(50)))
        for path in lake_files(server.lake):
            os.utime(path, (path.stat().st_mtime - 3_600,) * 2)
        expire = ("lake", "expire", "--database", "default", "--before", "2026-01-02", "--yes")
        assert "2 files deleted" in arcpipe(server, *expire)
        assert rows(server, format_name) == []
        write(server, 50)
        wait_for_rows(server, format_name, [50])
        server.stop()


def test_a_catalogue_that_does_not_answer_is_told_and_waited_for(tmp_path: Path) -> None:
    settings = {"tables_iceberg_catalog": "rest", "tables_iceberg_uri": "http://127.0.0.1:9"}
    with serving(tmp_path, "iceberg", **settings) as server:
        write(server, *range(10))
        wait_until(lambda: list((server.wal / "tables").glob("0*.json")), "the handover")
        wait_until(lambda: committer(server)["unreachable"] and committer(server)["reason"], "the reason")
        assert "arcpipe_tables_unreachable 1.0" in server.get("/metrics").body.decode()
        server.stop()
        assert "1 batches that are not committed to tables" in server.log


@long
def test_uploads_wait_when_too_much_is_not_committed(tmp_path: Path) -> None:
    """With a bound of 1 MB and a catalogue that does not answer; then it does."""
    settings = {"tables_iceberg_catalog": "rest", "tables_iceberg_uri": "http://127.0.0.1:9"}
    with serving(tmp_path, "iceberg", tables_max_uncommitted_mb=1, shutdown_drain_seconds=1, **settings) as server:
        for number in range(2):
            files = len(lake_files(server.lake))
            write(
                server,
                *range(number * 100, number * 100 + 100),
                pad=[os.urandom(10_000).hex()] * 100,
                odd=[os.urandom(8_000).hex() for _ in range(100)],
            )
            wait_until(functools.partial(_has_more, server, files), "the upload")
        write(server, 200)
        wait_until(lambda: committer(server)["held_back"], "the bound")
        assert "tables_held_back" in issues(server)
        assert server.segments(".wal.sealed") != []
        server.stop()
        for name in settings:
            del server.settings[name]
        server.start()
        wait_for_rows(server, "iceberg", list(range(201)))
        server.stop()


@long
@pytest.mark.parametrize("format_name", FORMATS)
def test_an_upgrade_in_the_midst_of_commits_loses_nothing(tmp_path: Path, format_name: str) -> None:
    with serving(tmp_path, format_name) as server:
        for number in range(3):
            before = server.log.count("serving on")
            write(server, *range(number * 10, number * 10 + 10))
            os.kill(server.pid, signal.SIGUSR2)
            wait_until(lambda before=before: server.log.count("serving on") > before, "the upgrade")  # type: ignore[misc]
        wait_for_rows(server, format_name, list(range(30)))
        server.stop()


def node(base: Path, lake: Path, number: int, **settings: object) -> Server:
    directory = base / f"node-{number}"
    directory.mkdir()
    server = serving(directory, "delta", storage_url=f"file://{lake}", **settings)
    server.lake = lake
    return server


def _holds(wanted: set[int], lake: Path, wal: Path) -> bool:
    return wanted <= {*numbers_in("delta", lake, wal)}


def test_a_column_with_two_types_has_all_values_in_the_table(tmp_path: Path) -> None:
    """The second node's text goes to the sibling, from then on without a rewritten file."""
    lake = tmp_path / "lake"
    first, second = (node(tmp_path, lake, number) for number in range(2))
    with first, second:
        write(first, 1)
        wait_for_rows(first, "delta", [1])
        second.write({"m": "cpu", "columns": {"time": [MOMENT], "n": ["two"]}})
        wait_until(lambda: len(texts(lake)) == 2, "the text in the table")
        wait_until(lambda: '"n_str"' in (second.wal / "schema.json").read_text(), "the uploader knows the types")
        second.write({"m": "cpu", "columns": {"time": [MOMENT], "n": ["three"]}})
        write(second, 4)
        wait_until(lambda: len(texts(lake)) == 4, "all rows")
        assert sorted(texts(lake), key=str) == [(1, None), (4, None), (None, "three"), (None, "two")]
        assert second.log.count("its values go to 'n_str'") == 1
        assert sum(".fit" in path.name for path in lake_files(lake)) == 1
        second.stop()
        first.stop()
    assert "1 tables, 0 of them with problems." in arcpipe(first, "tables", "verify", "--all-nodes")


def texts(lake: Path) -> list[tuple[int | None, str | None]]:
    """Read two columns of the table with two readers, which have to agree."""
    table = DeltaTable(str(lake / "default" / "cpu"))
    first = table.to_pyarrow_table()
    second = pl.scan_delta(str(lake / "default" / "cpu"), version=table.version()).collect().to_arrow()
    found = [list(zip(*(columns(one, "n"), columns(one, "n_str")), strict=True)) for one in (first, second)]
    assert sorted(found[0], key=str) == sorted(found[1], key=str)
    return found[0]


def columns(table: Any, name: str) -> list[Any]:
    return list(table[name].to_pylist()) if name in table.schema.names else [None] * len(table)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=long)])
def test_several_nodes_write_one_table(tmp_path: Path, count: int) -> None:
    """One is killed, one is stopped for a while and revived; each row is there once."""
    lake = tmp_path / "lake"
    servers = [node(tmp_path, lake, number) for number in range(count)]
    wanted: list[int] = []
    try:
        for server in servers:
            server.start()
        for turn in range(4):
            for number, server in enumerate(servers):
                first = (turn * count + number) * 10
                more: dict[str, Any] = {f"of_{number}": [turn] * 10, "shared": [0.5] * 10}
                write(server, *range(first, first + 10), **more)
                wanted += range(first, first + 10)
            if turn == 1:
                servers[0].kill_all()
                servers[0].restart()
            if turn == 2:
                os.killpg(servers[1].pid, signal.SIGSTOP)
                others = {one for at, one in enumerate(wanted) if at // 10 % count != 1}
                wait_until(functools.partial(_holds, others, lake, servers[0].wal), "the others to go on")
                os.killpg(servers[1].pid, signal.SIGCONT)
        wait_until(lambda: len(numbers_in("delta", lake, servers[0].wal)) >= len(wanted), "all rows")
        assert numbers_in("delta", lake, servers[0].wal) == sorted(wanted)
        for server in servers:
            server.stop()
        assert "1 tables, 0 of them with problems." in arcpipe(servers[0], "tables", "verify", "--all-nodes")
        shown = json.loads(arcpipe(servers[0], "tables", "show", "default", "cpu", "--json"))
        assert len(shown["markers"]) == count
        assert {f"of_{number}" for number in range(count)} <= shown["columns"].keys()
    finally:
        for server in servers:
            server.end()
