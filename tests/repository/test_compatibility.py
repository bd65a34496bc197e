"""`docs/compatibility.md`, held against the tests: each row has one, and the version that is tested."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.python_clients import PYTHON_CLIENTS
from tests.clients.telegraf import OUTPUTS
from tests.clients.test_go_clients import CLIENTS as GO_CLIENTS
from tests.clients.test_node_clients import PROGRAMS as NODE_PROGRAMS
from tests.readers.adapters import READERS
from tests.readers.known import FAILURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
CURL = "tests/integration/test_influx_clients.py"
MAKEFILE = (ROOT / "Makefile").read_text()
# The package of each module of Go that sends telemetry.
TELEMETRY_MODULES = {
    "otel-sdk": "go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp",
    "otel-collector": "go.opentelemetry.io/collector/exporter/otlphttpexporter",
    "prometheus-agent": "github.com/prometheus/prometheus",
}


class Row(NamedTuple):
    """A client or a reader."""

    name: str
    version: str
    run_by: str
    test: str
    called: list[str]

    @property
    def package(self) -> str:
        return codes(self.name)[0]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


ROWS = [
    Row(name, version, codes(run_by)[0], codes(test)[0], codes(called))
    for name, version, run_by, test, called, _ in [*table("Clients"), *table("Readers")]
]


def variable(name: str) -> str:
    found = re.search(rf"^{name} \??:?= *(.+)$", MAKEFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def pins() -> dict[str, str]:
    """The version of each package that the tests install."""
    constraints = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    modules = re.findall(r"/([\w-]+)(?:/v\d+)? v(\S+)$", (ROOT / "tests/clients/go/go.mod").read_text(), re.MULTILINE)
    senders = ROOT / "tests/clients/telemetry"
    for module, package in TELEMETRY_MODULES.items():
        found = re.search(rf"\s{package} v(\S+)$", (senders / module / "go.mod").read_text(), re.MULTILINE)
        assert found is not None
        modules.append((package.rpartition("/")[2] if package.count("/") > 2 else package, found[1]))
    java = re.search(
        r"<artifactId>(\S+-otlp)</artifactId>\s*<version>(\S+)</version>", (senders / "java/pom.xml").read_text()
    )
    assert java is not None
    node = json.loads((ROOT / "tests/clients/node/package.json").read_text())["dependencies"]
    return {
        **dict(constraints),
        **dict(modules),
        java[1]: java[2],
        **node,
        **dict.fromkeys(("curl", "prometheus", "vmagent"), "any"),  # those of the machine
        "telegraf": variable("TELEGRAF").rpartition("@v")[2],
        "pyspark": ", ".join(variable("SPARK_VERSIONS").split()),
        variable("ICEBERG_JAR").rpartition(":")[2]: variable("ICEBERG").rpartition("-")[2],
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_has_the_version_that_is_tested(row: Row) -> None:
    assert row.version == pins()[row.package]
    try:
        assert importlib.metadata.version(row.package) == row.version
    except importlib.metadata.PackageNotFoundError:
        assert row.run_by != "make test" or row.version == "any"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_names_what_runs_it(row: Row) -> None:
    target = row.run_by.removeprefix("make ")
    assert re.search(rf"^{target}: .*## ", MAKEFILE, re.MULTILINE)
    recipe = re.search(rf"^{target}: .*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    assert target == "test" or row.test.rpartition("/")[0] in recipe[1]


def test_each_client_and_reader_that_is_tested_has_its_row() -> None:
    versions = [*variable("SPARK_VERSIONS").split(), variable("ICEBERG")]
    tested = {
        "tests/clients/test_python_clients.py": set(PYTHON_CLIENTS),
        "tests/clients/test_node_clients.py": set(NODE_PROGRAMS),
        "tests/clients/test_go_clients.py": set(GO_CLIENTS),
        "tests/clients/test_telegraf.py": set(OUTPUTS),
        "tests/readers/test_readers.py": {*READERS, *(f"spark {version}" for version in versions)},
        CURL: set(re.findall(r"^def (test_curl_writes_\w+)", (ROOT / CURL).read_text(), re.MULTILINE)),
        **{
            path: set(re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE))
            for path in (
                "tests/clients/test_prometheus_senders.py",
                "tests/clients/test_opentelemetry.py",
                "tests/clients/test_telemetry_senders.py",
            )
        },
    }
    listed: dict[str, set[str]] = {}
    for row in ROWS:
        assert row.called
        assert not listed.get(row.test, set()) & {*row.called}
        listed.setdefault(row.test, set()).update(row.called)
    assert listed == tested


def test_each_known_failure_of_a_reader_has_its_row() -> None:
    assert sorted(reason for _, _, reason in table("What readers cannot read")) == sorted(
        failure.reason for failure in FAILURES
    )
