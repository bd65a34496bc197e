"""Senders of telemetry that `make test-senders` builds or fetches into `.senders`, and runs as programs.

The SDKs of OpenTelemetry for Go and Java, its Collector, and the storage and remote write of a current Prometheus.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.clients.prometheus_senders import running
from tests.support.http import free_port
from tests.support.program import ROOT
from tests.support.waiting import WAIT_SECONDS, wait_until

INSTALLED: Final = ROOT / ".senders"
_SOURCES: Final = Path(__file__).parent / "telemetry"
LOGS: Final = 1000
SAMPLES: Final = 1000


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is not in `.senders`."""
    missing = [name for name in names if not (INSTALLED / name).exists()]
    return pytest.mark.skipif(
        bool(missing), reason=f"there is no {missing} in .senders: `make test-senders`, with Go, Java and Maven"
    )


def run_sdk(language: str, endpoint: str, database: str, compression: str) -> None:
    """Have an SDK send two spans, log records, and metrics of each kind that it has."""
    environment = dict(os.environ) | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-arc-database={database}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": "host.name=web-1",
    }
    command: list[str | Path] = [INSTALLED / "otel-sdk"]
    if language == "java":
        command = ["java", "-cp", f"{INSTALLED}/java/*", _SOURCES / "java" / "Sender.java"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@contextmanager
def collector(directory: Path, url: str, database: str, encoding: str, compression: str) -> Iterator[str]:
    """Run the Collector, with the settings of `docs/opentelemetry.md`; give the URL that it takes OTLP at."""
    port = free_port()
    own = f"http://127.0.0.1:{port}"
    config = directory / "collector.yaml"
    config.write_text(
        f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
processors: {{batch: {{send_batch_size: 8192, timeout: 100ms}}}}
exporters:
  otlphttp:
    endpoint: {url}
    compression: {compression}
    encoding: {encoding}
    headers: {{x-arc-database: {database}}}
    retry_on_failure: {{initial_interval: 200ms, max_interval: 1s}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [otlp], processors: [batch], exporters: [otlphttp]}}
    traces: {{receivers: [otlp], processors: [batch], exporters: [otlphttp]}}
    metrics: {{receivers: [otlp], processors: [batch], exporters: [otlphttp]}}
"""
    )
    with running(directory, str(INSTALLED / "otel-collector"), f"--config={config}"):
        wait_until(lambda: _is_ready(directory / "sender.log"), "a ready Collector")
        yield own


def _is_ready(log: Path) -> bool:
    lines = log.read_text()
    assert not lines.startswith("Error: "), lines
    return "Everything is ready" in lines


class Sent(NamedTuple):
    """What the agent of Prometheus sent."""

    began: int  # ms since the epoch: time of the first sample


@contextmanager
def prometheus_agent(directory: Path, url: str, database: str) -> Iterator[Sent]:
    """Run the agent of Prometheus, which sends by remote write 2.0, until the block ends."""
    config = directory / "agent.yml"
    config.write_text(
        f"""
remote_write:
  - url: {url}/api/v1/write?db={database}
    protobuf_message: io.prometheus.write.v2.Request
    send_exemplars: true
    send_native_histograms: true
    queue_config: {{max_samples_per_send: 10000, batch_send_deadline: 200ms}}
"""
    )
    (directory / "agent").mkdir()
    with (directory / "sender.log").open("wb") as log:
        process = subprocess.Popen(
            [INSTALLED / "prometheus-agent", config, directory / "agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (directory / "sender.log").read_text()
        yield Sent(json.loads(line))
        process.stdin.close()
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
