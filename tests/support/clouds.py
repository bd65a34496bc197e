"""The stores of Google and Azure, as their emulators have them: `make test-clouds` gets both.

Azurite (npm) is Microsoft's own, and fake-gcs-server a Go program. Each runs once per pytest process, on a free port.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
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
from tests.support.waiting import START_SECONDS, wait_until

_TOOLS: Final = ROOT / ".clouds"
_AZURITE: Final = _TOOLS / "node_modules/.bin/azurite-blob"
_GOOGLE: Final = _TOOLS / "fake-gcs-server"
# Azurite's only account, which its documentation names.
_ACCOUNT: Final = "devstoreaccount1"
_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION: Final = "2021-12-02"


@dataclass(frozen=True)
class Cloud:
    """A bucket or container of one's own, and the variables that lead there."""

    url: str
    variables: dict[str, str]


@pytest.fixture(scope="session")
def azurite() -> Iterator[int]:
    """Run Azurite; give its port."""
    if not _AZURITE.exists():
        pytest.skip("there is no Azurite here: `make test-clouds` gets it where there is npm")
    port = free_port()
    with _running(_AZURITE, f"--blobPort={port}", "--blobHost=127.0.0.1", "--inMemoryPersistence", "--silent"):
        wait_until(lambda: _answers(port), "Azurite", START_SECONDS)
        yield port


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[int]:
    """Run fake-gcs-server; give its port."""
    if not _GOOGLE.exists():
        pytest.skip("there is no fake-gcs-server here: `make test-clouds` gets it where there is Go")
    port = free_port()
    flags = ("-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-public-host=127.0.0.1:{port}")
    with _running(_GOOGLE, *flags):
        wait_until(lambda: _answers(port), "fake-gcs-server", START_SECONDS)
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
def google(fake_gcs: int) -> Cloud:
    name = f"lake-{uuid.uuid4().hex[:12]}"
    base = f"http://127.0.0.1:{fake_gcs}"
    request = urllib.request.Request(
        f"{base}/storage/v1/b?project=test",
        json.dumps({"name": name}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    key = {"gcs_base_url": base, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return Cloud(f"gs://{name}/some/prefix", {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)})


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
