"""Which kind a failure of Google's or Azure's store is of, and what its text keeps to itself."""

from __future__ import annotations

import pytest
from obstore import exceptions as refusals

from arcpipe.storage.cloud_errors import explain

FAILED = "Error performing PUT http://127.0.0.1:443/lake-503-429/a%2D401 in 554.221µs"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"{FAILED} - Server returned non-2xx status code: 400 Bad Request: no", "other"),
        (f"{FAILED} - Server returned non-2xx status code: 503 Service Unavailable: ", "server_error"),
        (f"{FAILED} - Server returned non-2xx status code: 429 Too Many Requests: ", "throttled"),
        (f"{FAILED} - Server returned non-2xx status code: 403 Forbidden: ", "credentials"),
        (f"{FAILED} - HTTP error: error sending request", "connection"),
        (f"{FAILED} - HTTP error: request or response body error: operation timed out", "timeout"),
    ],
)
def test_a_status_decides_and_no_other_number(text: str, kind: str) -> None:
    assert explain("write", "gs://lake/a", refusals.BaseError(text)).kind == kind


def test_signatures_are_left_out_of_the_text() -> None:
    error = refusals.BaseError("GET https://a.example/b?sv=1&sig=SECRET%3D&se=2 failed\n\nDebug source:\nall of it")
    text = str(explain("read", "az://lake/b", error))
    assert "SECRET" not in text
    assert "Debug" not in text
    assert "sig=…&se=2" in text
