"""The stores of Google and Azure, as emulators have them.

Azurite is Microsoft's own: `make test-clouds` gets it from npm. For Google's it gets fake-gcs-server, a Go program,
which takes all requests, but in JSON: `google_front` is before it. Each runs once per pytest process, on a free port.

Without fake-gcs-server an S3 server stands for Google's, whose requests are the same but for conditions and copies.
ARCPIPE_TEST_GCS_ENDPOINT names a server that has them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.support.http import free_port
from tests.support.program import ROOT
from tests.support.s3server import S3Bucket
from tests.support.waiting import START_SECONDS, wait_until

_TOOLS: Final = ROOT / ".clouds"
_AZURITE: Final = _TOOLS / "node_modules/.bin/azurite-blob"
_FAKE_GCS: Final = _TOOLS / "fake-gcs-server"
# Azurite's only account, which its documentation names.
_ACCOUNT: Final = "devstoreaccount1"
_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION: Final = "2021-12-02"


@dataclass(frozen=True)
class Cloud:
    """A bucket or container of one's own, and the variables that lead there."""

    url: str
    variables: dict[str, str]
    is_whole: bool = True  # it has conditions and copies, too
    reader: dict[str, str] = field(default_factory=dict)  # as pyiceberg's own reader takes it


@pytest.fixture(scope="session")
def azurite() -> Iterator[int]:
    """Run Azurite; give its port."""
    if not _AZURITE.exists():
        pytest.skip("there is no Azurite here: `make test-clouds` gets it where there is npm")
    port = free_port()
    with _running(_AZURITE, f"--blobPort={port}", "--blobHost=127.0.0.1", "--inMemoryPersistence", "--silent"):
        wait_until(lambda: _answers(port), "Azurite", START_SECONDS)
        yield port


@pytest.fixture
def azure(azurite: int) -> Cloud:
    name = f"lake-{uuid.uuid4().hex[:12]}"
    moment = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    lines = "\n" * 12
    signed = f"PUT{lines}x-ms-date:{moment}\nx-ms-version:{_VERSION}\n/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(_KEY), signed.encode(), hashlib.sha256)).decode()
    headers = {
        "x-ms-date": moment,
        "x-ms-version": _VERSION,
        "Authorization": f"SharedKey {_ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
    connection = http.client.HTTPConnection("127.0.0.1", azurite, timeout=30)
    connection.request("PUT", f"/{_ACCOUNT}/{name}?restype=container", headers=headers)
    assert connection.getresponse().status == 201
    connection.close()
    variables = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{azurite}"}
    # pyiceberg's reader for this needs adlfs, so arcpipe's own reads metadata; files are read by polars.
    reader = {"py-io-impl": "arcpipe.tables.iceberg.cloud_io.CloudFileIO"}
    return Cloud(f"az://{name}/some/prefix", variables, reader=reader)


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[tuple[str, str]]:
    """Run fake-gcs-server and the front before it; give the addresses for JSON and for XML, empty where it is not."""
    if given := os.environ.get("ARCPIPE_TEST_GCS_ENDPOINT"):
        yield given, given
        return
    if not _FAKE_GCS.exists():
        yield "", ""
        return
    port, front = free_port(), free_port()
    json_url = f"http://127.0.0.1:{port}"
    own = ("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port))
    with (
        _running(_FAKE_GCS, *own, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"),
        _running(sys.executable, "-P", ROOT / "tests/support/google_front.py", str(front), json_url),
    ):
        wait_until(lambda: _answers(port) and _answers(front), "fake-gcs-server", START_SECONDS)
        yield json_url, f"http://127.0.0.1:{front}"


@pytest.fixture
def google(
    request: pytest.FixtureRequest, fake_gcs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Cloud:
    json_url, xml_url = fake_gcs
    name = f"lake{uuid.uuid4().hex[:12]}"  # without a dash, which the client escapes and not every server reads back
    if not json_url:
        if "ARCPIPE_TEST_S3_ENDPOINT" in os.environ:
            pytest.skip("the S3 server of the tests is somebody's own: ARCPIPE_TEST_GCS_ENDPOINT names an emulator")
        s3: S3Bucket = request.getfixturevalue("s3")
        s3.client().create_bucket(Bucket=name)
        variables = {"GOOGLE_BEARER_TOKEN": "any", "GOOGLE_BASE_URL": s3.endpoint_url}
        return Cloud(f"gs://{name}/some/prefix", variables, is_whole=False)
    making = urllib.request.Request(
        f"{json_url}/storage/v1/b?project=test",
        json.dumps({"name": name}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(making, timeout=30) as answer:
        assert answer.status == 200
    # A key of a service account, as Google's libraries take it from there; this one needs no token.
    key = tmp_path_factory.mktemp("key") / "key.json"
    no_key = {"client_email": "", "private_key": "", "private_key_id": ""}
    key.write_text(json.dumps(no_key | {"gcs_base_url": xml_url, "disable_oauth": True}))
    variables = {"GOOGLE_SERVICE_ACCOUNT": str(key), "GOOGLE_BASE_URL": xml_url}
    expiry = str(int((time.time() + 86_400) * 1000))
    reader = {"gcs.service.host": json_url, "gcs.oauth2.token": "any", "gcs.oauth2.token-expires-at": expiry}
    return Cloud(f"gs://{name}/some/prefix", variables, reader=reader)


@contextlib.contextmanager
def _running(*command: str | Path) -> Iterator[None]:
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
