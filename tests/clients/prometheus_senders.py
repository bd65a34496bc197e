"""Prometheus and vmagent, run as programs: they scrape a small exporter of the test, and write what they scraped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

from tests.support.http import free_port

PROMETHEUS: Final = shutil.which("prometheus")
VMAGENT: Final = os.environ.get("ARCPIPE_TEST_VMAGENT") or shutil.which("vmagent")

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="there is no prometheus (Debian: apt install prometheus)"
)
needs_vmagent = pytest.mark.skipif(
    VMAGENT is None, reason="there is no vmagent (Debian: apt install victoria-metrics, or ARCPIPE_TEST_VMAGENT)"
)

PAGE: Final = """# HELP requests_total Requests so far.
# TYPE requests_total counter
requests_total{path="/a",text="a \\"quoted\\" one"} 3
requests_total{path="/b",text="plain"} 4.5
# TYPE temperature gauge
temperature NaN
# HELP seconds Latency.
# TYPE seconds histogram
seconds_bucket{le="0.1"} 1
seconds_bucket{le="+Inf"} 2
seconds_sum 0.5
seconds_count 2
"""
# Series of the page, as metric and labels of its own.
SERIES: Final = {
    ("requests_total", "/a"): 3.0,
    ("requests_total", "/b"): 4.5,
    ("seconds_bucket", "0.1"): 1.0,
    ("seconds_bucket", "+Inf"): 2.0,
    ("seconds_sum", None): 0.5,
    ("seconds_count", None): 2.0,
}


class _Exporter(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def exporter() -> Iterator[int]:
    """Serve the page; give the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _scrapes(port: int) -> str:
    return (
        "global: {scrape_interval: 250ms}\n"
        f"scrape_configs: [{{job_name: test, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )


@contextmanager
def running_prometheus(directory: Path, url: str, exporter_port: int) -> Iterator[int]:
    """Run Prometheus, with the settings of `docs/prometheus.md`, until the block ends; give its own port."""
    assert PROMETHEUS is not None
    config = directory / "prometheus.yml"
    write = f"remote_write: [{{url: '{url}/api/v1/write', metadata_config: {{send_interval: 1s}}}}]\n"
    config.write_text(_scrapes(exporter_port) + write)
    port = free_port()
    with running(
        directory,
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ):
        yield port


def times_of(metric: str, port: int) -> list[int]:
    """Ask Prometheus for the times of a series, in ms."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={metric}[1h]", timeout=30) as answer:
        (series,) = json.load(answer)["data"]["result"]
    return [round(time * 1000) for time, _ in series["values"]]


@contextmanager
def running_vmagent(directory: Path, url: str, exporter_port: int) -> Iterator[None]:
    """Run vmagent, with the settings of `docs/prometheus.md`, until the block ends."""
    assert VMAGENT is not None
    config = directory / "scrape.yml"
    config.write_text(_scrapes(exporter_port))
    with running(
        directory,
        VMAGENT,
        f"-promscrape.config={config}",
        f"-remoteWrite.url={url}/api/v1/write",
        f"-remoteWrite.tmpDataPath={directory / 'queue'}",
        "-remoteWrite.flushInterval=200ms",
        f"-httpListenAddr=127.0.0.1:{free_port()}",
    ):
        yield


@contextmanager
def running(directory: Path, *command: str) -> Iterator[None]:
    """Run a program until the block ends, which it has to outlive."""
    with (directory / "sender.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
            assert process.poll() is None, (directory / "sender.log").read_text()
        finally:
            process.terminate()
            process.wait(30)
