"""The benchmarks' `--target` against a real arcpipe, over HTTPS and with a token: its counts are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import model
from benchmarks.suites.parquet_files import ParquetFiles
from benchmarks.system.children import ROOT
from benchmarks.system.listeners import processes_at
from benchmarks.system.machine import is_in_memory
from tests.support.certificates import needs_openssl
from tests.support.http import free_port
from tests.support.program import COMMAND, environment
from tests.support.sets import long
from tests.support.tls import make_certificate, tls_server
from tests.support.waiting import WAIT_SECONDS

BRIEFLY = ["--warmup", "0", "--seconds", "1", "--runs", "1", "--connections", "2", "--records", "20"]


def start(directory: Path, name: str, token: str, *arguments: str) -> subprocess.Popen[str]:
    """The benchmarks, writing to a database and a file of results of this name."""
    options = [*BRIEFLY, *arguments, "--database", name, "--json", str(directory / f"{name}.json")]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=directory,
        env=environment() | {"SSL_CERT_FILE": str(directory / "cert.pem"), "BENCH_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_openssl
def test_every_protocol_writes_what_is_said_acknowledged(tmp_path: Path) -> None:
    """Every protocol writes what the target is said to have acknowledged."""
    make_certificate(tmp_path)
    token = subprocess.check_output(
        [*COMMAND, "token", "create", "--scope", "write"], cwd=tmp_path, env=environment(), text=True
    ).strip()
    with tls_server(tmp_path, auth_enabled=True) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        loads = {
            "first": start(tmp_path, "first", f"any:{token}", f"--target={url}", "--protocol=influx1"),
            "second": start(
                *(tmp_path, "second", token, f"--target=v2={url}", f"--target=v3={url}"),
                *("--protocol=influx2", "--protocol=influx3", "--format=telegraf + gzip"),
            ),
            "third": start(tmp_path, "third", token, f"--target={url}", "--protocol=arc", "--rate=10000"),
            "fourth": start(tmp_path, "fourth", token, f"--target={url}", "--protocol=prometheus"),
            "fifth": start(tmp_path, "fifth", token, f"--target={url}", "--protocol=otlp", "--format=otlp logs"),
        }
        for load in loads.values():
            output, errors = load.communicate(timeout=WAIT_SECONDS)
            assert load.returncode == 0, errors
            assert "Not verified" in output
        server.stop()
    for name, cases in (("first", 1), ("second", 2), ("third", 1), ("fourth", 1), ("fifth", 1)):
        file = tmp_path / f"{name}.json"
        runs = model.read(file).suites[0].runs
        assert len(runs) == cases
        assert all(run.acknowledged_records and run.cpu_seconds_per_request is not None for run in runs)
        assert {"supervisor", "ingest 1", "uploader"} <= {one.name for run in runs for one in run.processes}
        # With those of the one request to each target that goes before its load.
        assert ParquetFiles(server.lake / name).update() == sum(run.acknowledged_records + 20 for run in runs)
        assert token not in file.read_text()


@long
@pytest.mark.skipif(is_in_memory(ROOT), reason="the harness measures nothing in memory")
def test_a_target_with_a_command_runs_in_its_turn_alone(tmp_path: Path) -> None:
    """Each is started, loaded, drained and stopped, one after the other: what they acknowledged is in the lake."""
    first, second = free_port(), free_port()

    def options(name: str, port: int) -> tuple[str, str]:
        settings = f"ARCPIPE_SERVER_PORT={port} ARCPIPE_SERVER_WORKERS=1 ARCPIPE_WAL_DIR={{dir}}/wal"
        command = f"env {settings} ARCPIPE_STORAGE_URL=file://{tmp_path}/{name} {' '.join(COMMAND)} serve"
        return f"--target={name}=http://127.0.0.1:{port}", f"--command={command}"

    load = start(
        *(tmp_path, "turns", "", *options("one", first), *options("two", second)),
        *("--protocol=ingest", "--format=arrow", f"--data-dir={ROOT / f'.turns-{os.getpid()}'}"),
    )
    _, errors = load.communicate(timeout=2 * WAIT_SECONDS)
    assert load.returncode == 0, errors
    [suite] = model.read(tmp_path / "turns.json").suites
    for case in suite.cases:
        [run] = case.runs
        assert run.drain_seconds > 0
        assert run.acknowledged_records > 0
        assert {"supervisor", "ingest 1"} <= {one.name for one in run.processes}
        assert ParquetFiles(tmp_path / case.name / "turns").update() == run.acknowledged_records + 20
    for port in (first, second):
        assert processes_at("127.0.0.1", port) == []


def test_a_command_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    target = f"--target=http://127.0.0.1:{free_port()}"
    command = "--command=sh -c 'echo no licence >&2; exit 3'"
    load = start(tmp_path, "ends", "", target, command, "--protocol=arc", f"--data-dir={ROOT / f'.ends-{os.getpid()}'}")
    _, errors = load.communicate(timeout=WAIT_SECONDS)
    assert load.returncode == 1
    assert "ended with exit code 3 at once:\nno licence" in errors
