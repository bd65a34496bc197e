"""A token service: the S3 server's own, behind a proxy that says how long its credentials live."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs
from urllib.request import Request, urlopen


class TokenService:
    """`url` is for `AWS_ENDPOINT_URL_STS`. For a `with` block."""

    def __init__(self, endpoint_url: str, given: Callable[[str], object] = lambda token: None) -> None:
        """Make ready.

        Args:
            endpoint_url: of the server behind it.
            given: called with each session token, before its user gets it.
        """
        self.seconds = 3600.0  # that the next credentials live
        self.refuses = False
        self.asked: list[dict[str, str]] = []  # the fields of each request
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append({name: values[0] for name, values in parse_qs(body.decode()).items()})
                status, answer = service._answer(endpoint_url, body, given)
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> TokenService:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, endpoint_url: str, body: bytes, given: Callable[[str], object]) -> tuple[int, bytes]:
        if self.refuses:
            error = (
                b"<Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>unknown issuer</Message></Error>"
            )
            return 400, b"<ErrorResponse>" + error + b"</ErrorResponse>"
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/sts/aws4_request",  # moto reads "sts"
        }
        with urlopen(Request(endpoint_url, body, headers)) as response:
            text = response.read().decode()
        end = datetime.now(UTC) + timedelta(seconds=self.seconds)
        text, count = re.subn(r"(?<=<Expiration>)[^<]+", end.strftime("%Y-%m-%dT%H:%M:%SZ"), text)
        found = re.search(r"<SessionToken>([^<]+)", text)
        assert count == 1
        assert found is not None
        given(found[1])
        return 200, text.encode()
