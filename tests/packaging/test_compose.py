"""The compose file: valid, pinned and closed to others; and its constellation, started from programs of this machine.

There is no container engine here. The same settings go to a real server, an S3 server and Prometheus as processes; what
Grafana would ask is asked of Prometheus.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from arcpipe.config.load import load
from tests.clients.prometheus_senders import PROMETHEUS, needs_prometheus, running
from tests.support.http import free_port
from tests.support.program import ROOT
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.stores import s3_store
from tests.support.waiting import wait_until

COMPOSE: Final = ROOT / "packaging/compose"
_CHECKER: Final = ROOT / ".chart-tools/compose"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.skipif(not _CHECKER.exists(), reason="there is no compose parser here: `make test-chart` gets it with Go")
def test_compose_takes_the_file() -> None:
    done = subprocess.run([_CHECKER, COMPOSE / "compose.yaml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_image_is_pinned_and_each_port_is_of_this_machine_alone(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+(\.\d+)+$", service["image"]) or name == "arcpipe", service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_each_file_that_is_mounted_is_there(services: dict[str, Any]) -> None:
    volumes = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["volumes"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in volumes


def test_the_variables_are_settings(services: dict[str, Any], tmp_path: Path) -> None:
    variables = {name: str(value) for name, value in services["arcpipe"]["environment"].items()}
    settings = load(None, variables)
    assert settings.storage.url == "s3://lake"
    assert settings.auth.allow_anonymous
    keys = json.loads((COMPOSE / "s3.json").read_text())["identities"][0]["credentials"][0]
    assert settings.storage.s3.access_key_id == keys["accessKey"]
    assert settings.storage.s3.secret_access_key == keys["secretKey"]


@needs_prometheus
def test_prometheus_has_what_the_dashboard_asks_for(services: dict[str, Any], s3: S3Bucket, tmp_path: Path) -> None:
    port, own_port = free_port(), free_port()
    of_file = {
        name.removeprefix("ARCPIPE_").lower(): value
        for name, value in services["arcpipe"]["environment"].items()
        if not name.startswith("ARCPIPE_STORAGE_S3_") and name != "ARCPIPE_STORAGE_URL"
    }
    here = {
        "server_port": port,
        "uploader_interval_seconds": 0.5,
        "server_workers": 1,
        **s3_store(s3, tmp_path).settings,
    }
    scrapes = (COMPOSE / "prometheus.yml").read_text()
    assert "arcpipe:8000" in scrapes
    assert "/etc/prometheus/alerts.yml" in scrapes
    config = tmp_path / "prometheus.yml"
    scrapes = scrapes.replace("arcpipe:8000", f"127.0.0.1:{port}").replace("scrape_interval: 5s", "scrape_interval: 1s")
    config.write_text(scrapes.replace("/etc/prometheus/alerts.yml", str(ROOT / "ops/alerts.yml")))
    flags = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    assert PROMETHEUS is not None
    with (
        Server(tmp_path, **{**of_file, **here}) as server,
        running(tmp_path, PROMETHEUS, *flags, f"--web.listen-address=127.0.0.1:{own_port}"),
    ):

        def ask(path: str, **query: str) -> Any:
            url = f"http://127.0.0.1:{own_port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = json.load(answer)
            assert found["status"] == "success", found
            return found["data"]

        def is_known() -> bool:
            server.write({"m": "cpu", "columns": {"n": [1, 2, 3]}})
            try:
                found = ask("query", query="sum(rate(arcpipe_upload_rows_total[1m])) > 0")
            except OSError:  # it is still starting
                return False
            return bool(found["result"])

        wait_until(is_known, "Prometheus to know of uploads")
        groups = ask("rules")["groups"]
        assert sum(len(group["rules"]) for group in groups) > 10
        assert not [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
        panels = json.loads((ROOT / "ops/grafana-dashboard.json").read_text())["panels"]
        answered = [
            bool(ask("query", query=_as_grafana(target["expr"]))["result"])
            for panel in panels
            for target in panel.get("targets", [])
        ]
        assert len(answered) > 20
        assert sum(answered) > len(answered) // 2, "the others are about what this server has not done"
        server.stop()


def _as_grafana(expression: str) -> str:
    """The expression with Grafana's variables filled in."""
    for name, value in (("__rate_interval", "1m"), ("__range", "1h"), ("__interval", "15s"), ("instance", ".*")):
        expression = expression.replace(f"${name}", value).replace(f"${{{name}}}", value)
    assert "$" not in re.sub(r'"[^"]*"', "", expression), expression
    return expression
