"""The benchmarks' `--target` against a real arcpipe, over HTTPS and with a token: its counts are right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.results import model
from benchmarks.suites.parquet_files import ParquetFiles
from tests.support.certificates import needs_openssl
from tests.support.program import COMMAND, environment
from tests.support.tls import make_certificate, tls_server

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
        }
        for load in loads.values():
            output, errors = load.communicate(timeout=60)
            assert load.returncode == 0, errors
            assert "Not verified" in output
        server.stop()
    for name, cases in (("first", 1), ("second", 2), ("third", 1)):
        file = tmp_path / f"{name}.json"
        runs = model.read(file).suites[0].runs
        assert len(runs) == cases
        assert all(run.acknowledged_records and run.cpu_seconds_per_request is not None for run in runs)
        assert {"supervisor", "ingest 1", "uploader"} <= {one.name for run in runs for one in run.processes}
        # With those of the one request to each target that goes before its load.
        assert ParquetFiles(server.lake / name).update() == sum(run.acknowledged_records + 20 for run in runs)
        assert token not in file.read_text()
