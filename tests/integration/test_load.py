"""`arcpipe load`: each format into a real server, faults, kills and runs again, and what it says."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import preloaded
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.http import free_port
from tests.support.keepers import KEEPERS, keeper
from tests.support.key_model import ModelServer
from tests.support.lake import lake_rows
from tests.support.program import COMMAND, environment
from tests.support.server import Server
from tests.support.sets import IS_LONG, long
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

FAULTS = Faults(lost_answers=0.2, cut_answers=0.05, cut_requests=0.1, refused=0.1)
START = 1_790_000_000_000_000_000


def run(directory: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run("load", *map(str, arguments), directory=directory, environ=environment() | variables)


def numbered(path: Path, count: int, first: int = 0) -> Path:
    path.write_text("".join(f"cpu,host=web-1 n={n}i {START + n}\n" for n in range(first, first + count)))
    return path


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


# Formats


@pytest.mark.slow
def test_every_format_arrives_with_its_values(tmp_path: Path) -> None:
    (tmp_path / "a.lp.gz").write_bytes(
        gzip.compress(
            b"# DDL\nCREATE DATABASE x WITH NAME y\n# DML\n# CONTEXT-DATABASE:old\ncpu n=1i 1790000000000000000\n"
        )
    )
    (tmp_path / "b.csv").write_text("at,site,zip,n\n2026-11-29T10:00:00Z,a,007,1\n")
    (tmp_path / "c.ndjson").write_text('{"measurement": "json", "time": 1790000000, "n": 1, "list": [1, "x"]}\n')
    (tmp_path / "d.csv").write_text(
        "#datatype,string,long,dateTime:RFC3339,long,string,string,string\n#group,false,false,false,false,true,true,true\n"
        "#default,_result,,,,,,\n,result,table,_time,_value,_field,_measurement,host\n"
        ",,0,2026-01-02T00:00:00.123456Z,7,n,flux,a\n"
    )
    folder = tmp_path / "arc" / "prod" / "mem" / "2026" / "01" / "01" / "00"
    folder.mkdir(parents=True)
    times = pa.array([1_790_000_000_000_000], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"time": times, "n": [1], "f": [0.5]}), folder / "x.parquet")
    with pa.OSFile(str(tmp_path / "e.arrow"), "wb") as file:
        table = pa.table({"time": times, "n": [1]})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with Server(tmp_path, server_workers=1) as server:
        for arguments in (
            ["a.lp.gz", "c.ndjson", "d.csv", "arc"],
            ["b.csv", "--measurement", "power", "--tags", "site", "--time-column", "at", "--compression", "zstd"],
            ["e.arrow", "--measurement", "ipc", "--database", "other"],
        ):
            done = run(tmp_path, *arguments, "--url", server.url)
            assert done.returncode == 0, done.stdout + done.stderr
        server.stop()
    found = {
        name: [{k: v for k, v in row.items() if v is not None} for row in lake_rows(tmp_path / "lake", *name)]
        for name in [
            ("old", "cpu"), ("default", "power"), ("default", "json"), ("default", "flux"), ("prod", "mem"),
            ("other", "ipc"),
        ]
    }  # fmt: skip
    second = 1_790_000_000_000_000
    assert found["old", "cpu"] == [{"time": second, "n": 1}]
    assert found["default", "power"] == [{"time": 1_795_946_400_000_000, "site": "a", "zip": "007", "n": 1}]
    [row] = found["default", "json"]
    assert json.loads(row.pop("_rescued_data")) == {"list": [1, "x"]}
    assert row == {"time": second, "n": 1}
    assert found["default", "flux"] == [{"time": 1_767_312_000_123_456, "host": "a", "n": 7}]
    assert found["prod", "mem"] == [{"time": second, "n": 1, "f": 0.5}]
    assert found["other", "ipc"] == [{"time": second, "n": 1}]


# `influx_inspect export` of InfluxDB 1.8: two databases, one field in each line, and what strings may hold.
INSPECT_EXPORT = r"""# INFLUXDB EXPORT: 1677-09-21T00:12:43Z - 2262-04-11T23:47:16Z
# DDL
CREATE DATABASE NOAA WITH NAME autogen
CREATE DATABASE "my db" WITH NAME two_weeks
# DML
# CONTEXT-DATABASE:NOAA
# CONTEXT-RETENTION-POLICY:autogen
# writing tsm data
h2o_feet,location=coyote_creek level\ description="between 6 and 9 feet" 1439856000000000000
h2o_feet,location=coyote_creek level\ description="a \"quote\", a \\ and
# no comment" 1439856360000000000
h2o_feet,location=santa\ monica water_level=2.064 1439856000000000000
h2o_feet,location=santa\ monica water_level=1.5e+02 1439856360000000000
# writing wal data
odd\,name,a\=b=c\ d on=true,n=42i,u=7u 1439856720000000000
# CONTEXT-DATABASE:my db
# CONTEXT-RETENTION-POLICY:two_weeks
# writing tsm data
cpu,host=web-1 idle=99.5 1439856000000000000
"""
# `influx query --raw` of InfluxDB 2: tables after each other, each with annotations of its own.
RAW_QUERY = """#group,false,false,true,true,false,false,true,true,true
#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,double,string,string,string
#default,_result,,,,,,,,
,result,table,_start,_stop,_time,_value,_field,_measurement,host
,,0,2026-01-01T00:00:00Z,2026-01-02T00:00:00Z,2026-01-01T10:00:00Z,0.5,idle,cpu2,a
,,0,2026-01-01T00:00:00Z,2026-01-02T00:00:00Z,2026-01-01T10:00:10.5Z,0.25,idle,cpu2,a

#group,false,false,true,true,false,false,true,true,true
#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,string,string,string,string
#default,_result,,,,,,,,
,result,table,_start,_stop,_time,_value,_field,_measurement,host
,,1,2026-01-01T00:00:00Z,2026-01-02T00:00:00Z,2026-01-01T10:00:00Z,"a, ""b"" c",state,cpu2,a
"""


@pytest.mark.slow
def test_exports_of_influxdb_and_arc_arrive_whole_and_once(tmp_path: Path) -> None:
    (tmp_path / "noaa.lp").write_text(INSPECT_EXPORT)
    (tmp_path / "raw.csv").write_bytes(RAW_QUERY.replace("\n", "\r\n").encode())
    hour = 1_767_225_600_000_000
    for number, measurement in enumerate(("mem", "mem", "net")):
        folder = tmp_path / "arc" / "prod" / measurement / "2026" / "01" / "01" / f"{number:02d}"
        folder.mkdir(parents=True)
        times = pa.array([hour + number * 3_600_000_000, hour + number * 3_600_000_000 + 1], pa.timestamp("us"))
        table = {"time": times, "host": ["a", None], "n": [number, None], "f": [0.5, -0.0], "ok": [True, False]}
        pq.write_table(pa.table(table), folder / f"{measurement}_20260101_0{number}0000_1.parquet", compression="zstd")
    with Server(tmp_path, server_workers=1) as server:
        for _ in range(2):
            done = run(tmp_path, "noaa.lp", "raw.csv", "arc", "--url", server.url)
            assert done.returncode == 0, done.stdout + done.stderr
        server.stop()

    def rows(database: str, measurement: str) -> list[tuple[Any, ...]]:
        found = lake_rows(tmp_path / "lake", database, measurement)
        return sorted((tuple(value for value in row.values() if value is not None) for row in found), key=str)

    second, later = 1_439_856_000_000_000, 1_439_856_360_000_000
    assert rows("NOAA", "h2o_feet") == [
        (second, "coyote_creek", "between 6 and 9 feet"),
        (second, "santa monica", 2.064),
        (later, "coyote_creek", 'a "quote", a \\ and\n# no comment'),
        (later, "santa monica", 150.0),
    ]
    [odd] = lake_rows(tmp_path / "lake", "NOAA", "odd%2Cname")
    assert odd == {"time": 1_439_856_720_000_000, "a=b": "c d", "on": True, "n": 42, "u": 7}
    assert rows("my%20db", "cpu") == [(second, "web-1", 99.5)]
    ten = hour + 10 * 3_600_000_000
    assert rows("default", "cpu2") == [(ten, "a", 'a, "b" c'), (ten, "a", 0.5), (ten + 10_500_000, "a", 0.25)]
    mem = lake_rows(tmp_path / "lake", "prod", "mem")
    assert [(row["time"] - hour, row["host"], row["n"], str(row["f"]), row["ok"]) for row in mem] == [
        (0, "a", 0, "0.5", True),
        (1, None, None, "-0.0", False),
        (3_600_000_000, "a", 1, "0.5", True),
        (3_600_000_001, None, None, "-0.0", False),
    ]
    assert len(rows("prod", "net")) == 2


# Once


def wait_for_requests(proxy: FaultyProxy, count: int) -> None:
    wait_until(lambda: proxy.met.total() >= count, f"{count} requests")


@pytest.mark.slow
@pytest.mark.parametrize("name", KEEPERS)
def test_a_load_over_a_bad_network_and_again_writes_each_record_once(name: str, tmp_path: Path) -> None:
    file = numbered(tmp_path / "a.lp", 2000)
    with keeper(name, tmp_path / "server") as kept, FaultyProxy(kept.url, FAULTS, seed=4) as proxy:
        options = ("--url", proxy.url, "--batch-records", 100)
        first = run(tmp_path, file, *options)
        assert first.returncode == 0, first.stderr
        again = run(tmp_path, file, *options, "--json")
        assert json.loads(again.stdout)["records"] == 2000
        assert kept.numbers(2000) == list(range(2000))
        assert proxy.met["lost_answers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KEEPERS)
def test_a_load_that_is_killed_and_run_again_writes_each_record_once(name: str, tmp_path: Path) -> None:
    files = [numbered(tmp_path / f"{number}.lp", 1000, number * 1000) for number in range(3)]
    chance = random.Random(7)
    with keeper(name, tmp_path / "server") as kept, FaultyProxy(kept.url, FAULTS, seed=4) as proxy:
        command = ["load", *map(str, files), "--url", proxy.url, "--batch-records", "50"]
        for _ in range(20 if IS_LONG else 3):
            before = proxy.met.total()
            with open(os.devnull, "w") as nowhere:
                process = preloaded.start(*command, directory=tmp_path, environ=environment(), output=nowhere)
            wait_for_requests(proxy, before + chance.randrange(1, 60))
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        done = run(tmp_path, *files, "--url", proxy.url, "--batch-records", 50)
        assert done.returncode == 0, done.stderr
        assert kept.numbers(3000) == list(range(3000))


def test_the_second_run_says_what_was_there(tmp_path: Path, model: ModelServer) -> None:
    file = numbered(tmp_path / "a.lp", 100)
    assert "100 records written in" in run(tmp_path, file, "--url", model.url).stdout
    assert "100 of them by an earlier load" in run(tmp_path, file, "--url", model.url).stdout
    assert model.numbers() == list(range(100))


def test_two_copies_in_one_run_are_loaded_once_and_told(tmp_path: Path, model: ModelServer) -> None:
    first = numbered(tmp_path / "a.lp", 10)
    (tmp_path / "b.lp.gz").write_bytes(gzip.compress(first.read_bytes()))
    done = run(tmp_path, "a.lp", "b.lp.gz", "--url", model.url)
    assert "b.lp.gz: skipped, because it has the same content as a.lp" in done.stderr
    assert (done.returncode, len(model.written)) == (0, 1)


# What it says


def test_bad_lines_are_told_with_their_numbers_and_the_others_written(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_text("cpu n=1i 1\n# x\nno line\ncpu n=2i 2\ncpu n=3\x07i 3\n")
    (tmp_path / "b.csv").write_text("time,n\n1790000000,1\n2026-13-45,2\n1790000002,3\n")
    with Server(tmp_path, server_workers=1) as server:
        done = run(tmp_path, "a.lp", "--url", server.url, "--database", "lines")
        assert done.returncode == 3
        assert "a.lp: line 3: field 'line' has no value at column 8: no line" in done.stderr
        assert "a.lp: line 5: " in done.stderr
        assert "a.lp: 2 records written" in done.stdout
        assert "2 refused" in done.stdout
        done = run(tmp_path, "b.csv", "--url", server.url, "--measurement", "m", "--json")
        assert done.returncode == 3
        result = json.loads(done.stdout)
        assert (result["records"], result["refused"]) == (2, 1)
        assert result["bad"][0]["place"] == "line 3"
        assert "2026-13-45" in result["bad"][0]["reason"]
        assert [row["n"] for row in server.wait_for_rows(2, "lines")] == [1, 2]
        assert [row["n"] for row in server.wait_for_rows(2, "default")] == [1, 3]


def test_a_dry_run_checks_and_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_text("cpu n=1i 1\nno line\n")
    done = run(tmp_path, "a.lp", "--dry-run", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert "a.lp: 1 records are good" in done.stdout
    assert "a.lp: line 2: " in done.stderr


def test_a_server_that_is_not_there_ends_it_after_the_given_time(tmp_path: Path) -> None:
    numbered(tmp_path / "a.lp", 1)
    done = run(tmp_path, "a.lp", "--url", f"http://127.0.0.1:{free_port()}", "--give-up", 1)
    assert done.returncode == 1
    assert "waiting: cannot connect: Connection refused; trying again in" in done.stderr
    assert "a.lp: lines from 1 on: gave up after 1 s: cannot connect" in done.stderr


def test_a_wrong_token_ends_it_at_once(tmp_path: Path) -> None:
    from tests.support import tokens

    numbered(tmp_path / "a.lp", 1)
    token = tokens.create(tmp_path, "--scope", "write", "--name", "x")
    with Server(tmp_path, server_workers=1, auth_enabled=True, auth_tokens_file=tmp_path / "tokens.toml") as server:
        done = run(tmp_path, "a.lp", "--url", server.url)
        assert (done.returncode, "answered 401" in done.stderr) == (1, True)
        done = run(tmp_path, "a.lp", "--url", server.url, ARCPIPE_TOKEN=token)
        assert done.returncode == 0, done.stderr


def test_ctrl_c_says_that_it_may_be_run_again(tmp_path: Path) -> None:
    numbered(tmp_path / "a.lp", 1000)
    with ModelServer() as model:
        command = [*COMMAND, "load", "a.lp", "--url", model.url, "--batch-records", "1", "--rate", "20"]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
        )
        wait_until(lambda: len(model.written) > 2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted: run the same command again" in said


def test_a_rate_is_kept(tmp_path: Path, model: ModelServer) -> None:
    numbered(tmp_path / "a.lp", 100)
    began = time.monotonic()
    assert run(tmp_path, "a.lp", "--url", model.url, "--rate", 100, "--batch-records", 10).returncode == 0
    assert time.monotonic() - began >= 0.9


@pytest.mark.slow
def test_a_terminal_shows_a_bar(tmp_path: Path, model: ModelServer) -> None:
    numbered(tmp_path / "a.lp", 200)
    terminal = Terminal("load", "a.lp", "--url", model.url, "--rate", "200", "--batch-records", "20", cwd=tmp_path)
    assert terminal.process.wait(60) == 0
    wait_until(lambda: "200 records written" in terminal.text, "the result")
    assert "records/s" in terminal.text
    assert "━" in terminal.text


# Memory


def peak_kb(tmp_path: Path, file: Path, url: str) -> int:
    process = subprocess.Popen([*COMMAND, "load", str(file), "--url", url], cwd=tmp_path, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    found: resource.struct_rusage = usage
    return found.ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lp", pytest.param("ndjson", marks=long)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    line: Any = {"lp": 'cpu,host=web-1 n=1i,text="%s" 1\n', "ndjson": '{"measurement":"cpu","time":1,"text":"%s"}\n'}[
        kind
    ]
    (tmp_path / f"small.{kind}").write_text((line % ("x" * 500)) * 4_000)
    (tmp_path / f"large.{kind}").write_text((line % ("x" * 500)) * 80_000)
    with ModelServer() as model:
        model.take = lambda *_: False  # type: ignore[method-assign]
        small = peak_kb(tmp_path, tmp_path / f"small.{kind}", model.url)
        large = peak_kb(tmp_path, tmp_path / f"large.{kind}", model.url)
    assert large - small < 12_000, f"{small} kB for 2 MB, {large} kB for 40 MB"
