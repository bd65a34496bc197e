"""Google's XML interface before fake-gcs-server, which has the JSON interface alone: clients in Rust speak XML.

    python -P tests/support/google_front.py PORT http://127.0.0.1:PORT_OF_FAKE_GCS_SERVER

It translates each request, and answers what the emulator did: conditions, copies and listings are the emulator's. Parts
of a large object are kept here until they are complete.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE_OBJECTS: Final = 50  # of a listing, so that tests meet more than one page


class Answer(NamedTuple):
    """An answer of the emulator, or of the front."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Front(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    emulator = ""
    uploads: Final[dict[str, dict[int, bytes]]] = {}
    numbers = itertools.count(1)
    lock = threading.Lock()

    def do_PUT(self) -> None:
        content = self._content()
        bucket, name, query = self._place()
        if "partNumber" in query:
            with self.lock:
                self.uploads[query["uploadId"]][int(query["partNumber"])] = content
            self._answer(Answer(200, headers={"ETag": f'"{query["partNumber"]}"'}))
        elif source := self.headers.get("x-goog-copy-source"):
            self._answer(self._copied(unquote(source).lstrip("/"), bucket, name))
        else:
            self._answer(self._put(bucket, name, content))

    def do_POST(self) -> None:
        content = self._content()
        bucket, name, query = self._place()
        if "uploads" in query:
            with self.lock:
                number = str(next(self.numbers))
                self.uploads[number] = {}
            found = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            self._answer(Answer(200, found.encode()))
        else:
            with self.lock:
                parts = self.uploads.pop(query["uploadId"])
            wanted = [int(one) for one in re.findall(rb"<PartNumber>(\d+)</PartNumber>", content)]
            answer = self._put(bucket, name, b"".join(parts[one] for one in wanted))
            etag = escape(answer.headers.get("ETag", ""))
            done = f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
            self._answer(answer._replace(body=done.encode()) if answer.status == 200 else answer)

    def do_GET(self) -> None:
        bucket, name, query = self._place()
        self._answer(self._ask("GET", f"/{bucket}/{quote(name, safe='')}") if name else self._listing(bucket, query))

    def do_HEAD(self) -> None:
        bucket, name, _ = self._place()
        self._answer(self._ask("HEAD", f"/{bucket}/{quote(name, safe='')}"))

    def do_DELETE(self) -> None:
        bucket, name, query = self._place()
        if "uploadId" in query:
            with self.lock:
                self.uploads.pop(query["uploadId"], None)
            self._answer(Answer(204))
        else:
            self._answer(self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"))

    def _put(self, bucket: str, name: str, content: bytes) -> Answer:
        condition = self.headers.get("x-goog-if-generation-match")
        query = f"uploadType=media&name={quote(name, safe='')}"
        query += f"&ifGenerationMatch={condition}" if condition else ""
        answer = self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", content)
        return self._told(answer)

    def _copied(self, source: str, bucket: str, name: str) -> Answer:
        from_bucket, _, from_name = source.partition("/")
        path = (
            f"/storage/v1/b/{from_bucket}/o/{quote(from_name, safe='')}/rewriteTo/b/{bucket}/o/{quote(name, safe='')}"
        )
        condition = self.headers.get("x-goog-if-generation-match")
        answer = self._ask("POST", path + (f"?ifGenerationMatch={condition}" if condition else ""), b"{}")
        return self._told(answer)

    def _told(self, answer: Answer) -> Answer:
        """Return an answer whose headers tell of the object that was written."""
        if answer.status != 200:
            return answer
        found = json.loads(answer.body)
        found = found.get("resource", found)
        headers = {"ETag": f'"{found["etag"].strip(chr(34))}"', "x-goog-generation": str(found["generation"])}
        return Answer(200, headers=headers)

    def _listing(self, bucket: str, query: Mapping[str, str]) -> Answer:
        after = query.get("start-after", "")
        wanted = {
            "prefix": query.get("prefix", ""),
            "delimiter": query.get("delimiter", ""),
            "pageToken": query.get("continuation-token", ""),
            "startOffset": after,
            "maxResults": str(_PAGE_OBJECTS),
        }
        path = f"/storage/v1/b/{bucket}/o?" + "&".join(
            f"{key}={quote(value, safe='')}" for key, value in wanted.items()
        )
        answer = self._ask("GET", path)
        if answer.status != 200:
            code = "NoSuchBucket" if answer.status == 404 else "Error"
            return Answer(answer.status, f"<Error><Code>{code}</Code></Error>".encode())
        found: dict[str, Any] = json.loads(answer.body)
        text = ['<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>']
        text += [
            f"<Contents><Key>{escape(one['name'])}</Key><Size>{one['size']}</Size>"
            f"<LastModified>{one['updated']}</LastModified><ETag>{escape(one['etag'])}</ETag></Contents>"
            for one in found.get("items", ())
            if one["name"] > after
        ]
        folders = found.get("prefixes", ())
        text += [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders]
        if token := found.get("nextPageToken"):
            text.append(f"<NextContinuationToken>{escape(token)}</NextContinuationToken>")
        return Answer(200, ("".join(text) + "</ListBucketResult>").encode())

    def _ask(self, method: str, path: str, content: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection(self.emulator, timeout=60)
        try:
            headers = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_CONNECTION}
            if method == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return Answer(answer.status, answer.read(), kept)
        finally:
            connection.close()

    def _content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _place(self) -> tuple[str, str, dict[str, str]]:
        """Return bucket, name of the object, and the query."""
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        query = {key: found[0] for key, found in parse_qs(parts.query, keep_blank_values=True).items()}
        return bucket, unquote(name), query

    def _answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


_OF_CONNECTION: Final = frozenset({"content-length", "connection", "transfer-encoding", "date", "accept-ranges"})


def main() -> None:
    """Serve until it is ended."""
    port, emulator = int(sys.argv[1]), sys.argv[2]
    Front.emulator = urlsplit(emulator).netloc
    ThreadingHTTPServer(("127.0.0.1", port), Front).serve_forever()


if __name__ == "__main__":
    main()
