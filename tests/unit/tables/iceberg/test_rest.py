"""Answers of whatever stands between arcpipe and a REST catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables, TablesIceberg
from arcpipe.tables.base import Dropped, Unavailable
from arcpipe.tables.iceberg.table import IcebergTables

CPU = ("default", "cpu")
_CONFIG = b'{"defaults": {}, "overrides": {}}'


def tables_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: bytes) -> IcebergTables:
    """Open the tables of a catalogue before which something answers 404 to all but the first request."""

    def send(_: HTTPAdapter, request: PreparedRequest, *__: Any, **___: Any) -> Response:
        answer = Response()
        answer.request, answer.url = request, request.url or ""
        is_first = (request.url or "").partition("?")[0].endswith("/v1/config")
        answer.status_code, answer._content = (200, _CONFIG) if is_first else (404, body)
        return answer

    monkeypatch.setattr(HTTPAdapter, "send", send)
    iceberg = TablesIceberg(catalog="rest", uri="http://127.0.0.1:9")
    return IcebergTables(Tables(format="iceberg", iceberg=iceberg), Storage(url=f"file://{tmp_path}"), str(tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>404 Not Found</html>",
        b"404 page not found\n",
        b"default backend - 404",
        b'{"message": "no Route matched with those values"}',
        b'["error"]',
    ],
)
def test_a_404_of_a_proxy_does_not_say_that_there_is_no_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: bytes
) -> None:
    """Else a merge whose files the table has would be given up, and these files deleted."""
    tables = tables_behind(monkeypatch, tmp_path, body)
    with pytest.raises(Unavailable, match="404"):
        tables.committed(CPU, "0123456789ab")
    with pytest.raises(Unavailable, match="404"):
        list(tables.files(CPU))
    with pytest.raises(Unavailable, match="404"):
        tables.former(CPU)
    with pytest.raises(Unavailable, match="404"):
        tables.all_tables()


def test_a_404_of_the_catalogue_says_that_there_is_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = {"error": {"message": "Table does not exist: default.cpu", "type": "NoSuchTableException", "code": 404}}
    tables = tables_behind(monkeypatch, tmp_path, json.dumps(error).encode())
    assert tables.committed(CPU, "0123456789ab") is None
    with pytest.raises(Dropped):
        list(tables.files(CPU))
