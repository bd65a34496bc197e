"""The Helm chart: what it writes is valid and starts, and what could not run is refused before it is installed.

`make test-chart` gets Helm and kubeconform, and runs this. The schemas of Kubernetes are those of kubernetes-validate.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.lake import lake_rows
from tests.support.program import ROOT
from tests.support.server import Server
from tests.support.waiting import wait_until

CHART: Final = ROOT / "packaging/helm/arcpipe"
_TOOLS: Final = ROOT / ".chart-tools"
_KUBERNETES: Final = (
    "1.27.0",
    "1.33.0",
    "1.37.0",
)  # the oldest that the chart takes, one between, the newest of the schemas
_NEW: Final = ("--kube-version", "1.33.0")
_NEEDED: Final = ("config.storage.url=s3://bucket/lake", "tokensSecretName=tokens")
_EVERYTHING: Final = (
    *_NEEDED,
    "tlsSecretName=tls",
    "secretName=s3",
    "serviceMonitor.enabled=true",
    "serviceMonitor.bearerTokenSecret.name=reader",
    "serviceMonitor.bearerTokenSecret.key=token",
    "prometheusRule.enabled=true",
    "networkPolicy.enabled=true",
    "networkPolicy.operationsFrom[0].namespaceSelector.matchLabels.name=monitoring",
    "persistence.storageClassName=fast",
    "persistence.annotations.a=b",
    "serviceAccount.annotations.role=writer",
    "image.pullSecrets[0].name=registry",
    "nodeSelector.disk=nvme",
    "priorityClassName=high",
    "config.compaction.enabled=true",
    "config.storage.s3.region=eu-central-1",
    "resources.limits.memory=4Gi",
)

pytestmark = pytest.mark.skipif(
    not (_TOOLS / "helm").exists(), reason="there is no Helm here: `make test-chart` gets it where there is Go"
)


def helm(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run([_TOOLS / "helm", *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def sets(*values: str) -> list[str]:
    """Options for Helm. What `--set` reads as a text, `--set-json` reads as a number."""
    is_fraction = re.compile(r"=\d+\.\d+$").search
    return [part for value in values for part in ("--set-json" if is_fraction(value) else "--set", value)]


def schemas_of(version: str, directory: Path) -> Path:
    """Copy the schemas of a Kubernetes, with references that lead from file to file."""
    found = importlib.util.find_spec("kubernetes_validate")
    assert found is not None, "make test-chart installs the schemas"
    assert found.submodule_search_locations
    source = Path(found.submodule_search_locations[0], "kubernetes-json-schema", f"v{version}-local-strict")
    directory.mkdir()
    for path in source.glob("*.json"):
        schema = json.loads(path.read_text().replace('"/api/_definitions.json', '"_definitions.json'))
        schema.pop("$id", None)  # an address in the network, from which references would be fetched
        (directory / path.name).write_text(json.dumps(schema))
    assert (directory / "statefulset-apps-v1.json").exists()
    return directory


def rendered(*values: str) -> dict[str, dict[str, Any]]:
    """The objects that the chart makes of these values, by kind and name."""
    text = helm("template", "here", CHART, *_NEW, *sets(*values))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text) if one}


def refused(*values: str) -> str:
    return helm("template", "here", CHART, *_NEW, *sets(*values), code=1)


def config_of(objects: dict[str, dict[str, Any]]) -> str:
    text: str = objects["ConfigMap/here-arcpipe"]["data"]["config.toml"]
    return text


def test_helm_finds_nothing_to_complain_of() -> None:
    said = helm("lint", "--strict", CHART, *_NEW, *sets(*_EVERYTHING))
    assert "1 chart(s) linted, 0 chart(s) failed" in said


@pytest.mark.parametrize("version", _KUBERNETES)
@pytest.mark.parametrize("values", [_NEEDED, _EVERYTHING], ids=["least", "everything"])
def test_kubernetes_takes_what_it_writes(values: tuple[str, ...], version: str, tmp_path: Path) -> None:
    schemas = schemas_of(version, tmp_path / "schemas")
    written = tmp_path / "objects.yaml"
    written.write_text(helm("template", "here", CHART, "--kube-version", version, *sets(*values)))
    custom = "ServiceMonitor,PrometheusRule"  # of the Prometheus operator, not of Kubernetes
    where = f"{schemas}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    options = ["-strict", "-summary", "-output", "json", "-skip", custom, "-schema-location", where]
    done = subprocess.run([_TOOLS / "kubeconform", *options, written], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["valid"] >= 6
    assert summary["invalid"] == summary["errors"] == 0


def test_arcpipe_starts_with_the_settings_it_writes(tmp_path: Path) -> None:
    """The file of the ConfigMap, with the addresses, directories and the store of this machine."""
    more = ("config.auth.allow_anonymous=true", "tokensSecretName=", "config.uploader.interval_seconds=0.5")
    config = tmp_path / "config.toml"
    config.write_text(config_of(rendered(*_NEEDED, *more, "config.limits.per_address.requests_per_second=5000")))
    settings = tomllib.loads(config.read_text())
    assert settings["server"]["workers"] == 2
    assert settings["uploader"]["interval_seconds"] == 0.5
    assert settings["limits"]["per_address"] == {"requests_per_second": 5000}
    here = {"server_listeners": "[]", "server_host": "127.0.0.1", "server_paths": "all", "shutdown_delay_seconds": 0}
    server = Server(tmp_path, **here)
    server.variables["ARCPIPE_CONFIG"] = str(config)
    with server:
        server.write({"m": "cpu", "columns": {"n": [1, 2, 3]}})
        wait_until(lambda: len(lake_rows(server.lake)) == 3, "the rows")
        server.stop()


def test_what_a_pod_has_is_what_a_node_needs() -> None:
    objects = rendered(*_EVERYTHING, "config.shutdown.drain_seconds=90")
    [pod] = [one["spec"]["template"]["spec"] for one in objects.values() if one["kind"] == "StatefulSet"]
    [container] = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > 10 + 90 + 15
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health", "/ready would kill a node that is behind"
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120 + 2 * 2 * 100 / 20
    assert objects["PrometheusRule/here-arcpipe"]["spec"] == yaml.safe_load((ROOT / "ops/alerts.yml").read_text())
    settings = tomllib.loads(config_of(objects))
    assert settings["server"]["listeners"] == [{"address": "0.0.0.0:8001", "paths": "operations"}]
    assert settings["auth"] == {"enabled": True, "tokens_file": "/etc/arcpipe/auth/tokens.toml"}


def test_the_rules_find_what_the_service_monitor_scrapes() -> None:
    """The operator takes the job from this label of the Service; without it, from the Service's name."""
    objects = rendered(*_EVERYTHING)
    label = objects["ServiceMonitor/here-arcpipe"]["spec"]["jobLabel"]
    job = objects["Service/here-arcpipe-nodes"]["metadata"]["labels"][label]
    rules = yaml.safe_dump(objects["PrometheusRule/here-arcpipe"]["spec"])
    assert set(re.findall(r'job="(\w+)"', rules)) == {job}


@pytest.mark.parametrize("url", ["gs://bucket/lake", "az://container/lake"])
def test_stores_of_other_clouds_are_taken(url: str) -> None:
    settings = tomllib.loads(config_of(rendered(f"config.storage.url={url}", _NEEDED[1])))
    assert settings["storage"]["url"] == url


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((), "config.storage.url is needed"),
        (("config.storage.url=file:///lake",), "a pod would lose what is on its own disk"),
        ((_NEEDED[0],), "needs tokens"),
        ((*_NEEDED, "persistence.size=20Gi"), "may need 23016 MiB: its disk would be full"),
        ((*_NEEDED, "config.wal.max_backlog_mb=40000"), "Take 44 Gi or more"),
        ((*_NEEDED, "persistence.size=much"), "is no size"),
        ((*_NEEDED, "resources.limits.memory=1Gi"), "would be killed under load"),
        ((*_NEEDED, "config.server.workers=0"), "has to be a number from 1"),
        ((*_NEEDED, "config.wal.enabled=false"), "would lose records"),
        ((*_NEEDED, "config.wal.dir=/data"), "config.wal.dir is set by the chart itself"),
        ((*_NEEDED, "config.server.host=::"), "config.server.host is set by the chart itself"),
        ((*_NEEDED, "config.tables.format=iceberg"), "a catalogue for one node"),
        ((*_NEEDED, "config.workers=2"), "config.workers is no section"),
        ((*_NEEDED, "replicas=3"), "replicas"),
        ((*_NEEDED, "persistence.accessModes[0]=ReadWriteMany"), "accessModes"),
    ],
)
def test_what_could_not_run_is_refused(values: tuple[str, ...], wanted: str) -> None:
    assert wanted in refused(*values)


def test_the_volume_that_a_refusal_names_is_taken() -> None:
    rendered(*_NEEDED, "config.wal.max_backlog_mb=40000", "persistence.size=44Gi")
    assert "Take 44 Gi" in refused(*_NEEDED, "config.wal.max_backlog_mb=40000", "persistence.size=43Gi")
