"""The stores of Google and Azure, as emulators have them.

Azurite is Microsoft's own: `make test-clouds` gets it from npm, and it runs once per pytest process, on a free port. No
emulator of Google's store has all requests that are used. So an S3 server stands for it, whose requests are the same
but for conditions and copies; ARCPIPE_TEST_GCS_ENDPOINT names a better one.
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
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
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
    return Cloud(f"az://{name}/some/prefix", variables)


@pytest.fixture
def google(request: pytest.FixtureRequest) -> Cloud:
    variables = {"GOOGLE_BEARER_TOKEN": "any"}
    endpoint = os.environ.get("ARCPIPE_TEST_GCS_ENDPOINT")
    name = f"lake{uuid.uuid4().hex[:12]}"  # without a dash, which the client escapes and not every server reads back
    if not endpoint:
        if "ARCPIPE_TEST_S3_ENDPOINT" in os.environ:
            pytest.skip("the S3 server of the tests is somebody's own: ARCPIPE_TEST_GCS_ENDPOINT names an emulator")
        s3: S3Bucket = request.getfixturevalue("s3")
        s3.client().create_bucket(Bucket=name)
        return Cloud(f"gs://{name}/some/prefix", variables | {"GOOGLE_BASE_URL": s3.endpoint_url}, is_whole=False)
    making = urllib.request.Request(
        f"{endpoint}/storage/v1/b?project=test",
        json.dumps({"name": name}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(making, timeout=30) as answer:
        assert answer.status == 200
    return Cloud(f"gs://{name}/some/prefix", variables | {"GOOGLE_BASE_URL": endpoint})


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
