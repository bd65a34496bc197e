"""docs/openapi.yaml, held against the router's real table and, by schemathesis, against the running server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from arcpipe import __version__
from arcpipe.access.reload import Access
from arcpipe.config.settings import Settings
from arcpipe.counters import REFUSAL_CODES, Counters
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.router import OPEN
from arcpipe.ingest.service import build
from arcpipe.monitoring import committer_state, health, process_state, snapshot
from tests.support.program import ROOT, environment
from tests.support.server import Server
from tests.support.sets import IS_LONG

OPENAPI = ROOT / "docs" / "openapi.yaml"
METHODS = {"get", "post", "put", "delete", "patch", "head", "options", "trace"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(OPENAPI.read_text())
    return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, path) to operation. Two paths may share one item."""
    found = {}
    for path, item in document["paths"].items():
        if "$ref" in item:
            item = document["components"]["pathItems"][item["$ref"].rpartition("/")[2]]
        found.update({(method.upper(), path): item[method] for method in METHODS & item.keys()})
    return found


def table() -> dict[tuple[str, str], str]:
    """(method, path) to scope, of a real worker's server; HEAD comes with each GET."""
    settings, commit = Settings(), SimpleNamespace(pending_bytes=0)
    access = Access(None, 0, None, 0)
    service = build(settings, 1, Counters(1), access, Limits.of(settings), lambda _: cast(Any, commit))
    return {
        (method.decode(), path.decode()): endpoint.scope
        for path, route in service.surface.routes.items()
        for method, endpoint in route.endpoints.items()
        if method != b"HEAD"
    }


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["info"]["version"] == __version__


def test_it_has_the_routes_of_the_server_and_no_others(document: dict[str, Any]) -> None:
    assert set(operations(document)) == set(table())


def test_it_names_the_scope_of_every_route(document: dict[str, Any]) -> None:
    for route, operation in operations(document).items():
        scopes = {scope for way in operation["security"] for roles in way.values() for scope in roles}
        wanted = table()[route]
        assert scopes == (set() if wanted == OPEN else {wanted}), route


def test_it_has_every_field_of_the_status(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, struct in {
        "Status": health.Picture,
        "Verdict": health.Verdict,
        "Issue": health.Issue,
        "CompactionState": process_state.CompactionState,
        "CommitterState": committer_state.CommitterState,
        "TableState": committer_state.TableState,
        "Instance": snapshot.Snapshot,
        "WorkerState": process_state.WorkerState,
        "UploaderState": process_state.UploaderState,
        "Distribution": process_state.Distribution,
    }.items():
        assert list(schemas[name]["properties"]) == list(struct.__struct_fields__), name
        assert schemas[name]["required"] == list(struct.__struct_fields__), name
    assert set(schemas["Error"]["properties"]["code"]["enum"]) >= set(REFUSAL_CODES) - {"other"}


def test_the_page_for_people_has_every_route(document: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "http-api.md").read_text()
    for method, path in operations(document):
        shown = path.replace("/api/v1/wal", "/api/wal").replace("/api/v1/monitoring", "/api/monitoring")
        assert f"`{method} {shown}" in page, f"{method} {path}"


@pytest.mark.timeout(1200)  # seconds; 20 on an idle machine, minutes where 15 others compute
def test_every_answer_to_schemathesis_is_documented(tmp_path: Path) -> None:
    """No request that schemathesis thinks of is answered otherwise than documented."""
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=60) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI), "--url", server.url),
                *(
                    "--phases",
                    "examples,coverage,fuzzing",
                    "--max-examples",
                    "20" if IS_LONG else "5",
                    "--generation-deterministic",
                ),
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
                "response_headers_conformance,unsupported_method,allow_header_conformance",
                *("--suppress-health-check", "all", "--warnings", "off", "--no-shrink", "--no-color"),
            ],
            cwd=tmp_path,
            env=environment() | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "HOME": os.fspath(tmp_path)},
            capture_output=True,
            text=True,
            timeout=1100,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert "Traceback" not in server.log
        server.stop()
