"""Puts that repeat one of the SDK's: as the SDK makes them, and with the same errors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import MemoryBlob
from arcpipe.storage.s3 import S3Store
from arcpipe.storage.s3_errors import S3Error
from arcpipe.units import KB
from tests.support.s3faults import SECRET, Answer, FaultServer, Request, Seen, refuses, taken
from tests.support.s3server import S3Bucket

pytestmark = pytest.mark.usefixtures("no_credentials_of_this_machine")

# Headers that differ from request to request (the SDK lists its features in any order), and those that only number the
# SDK's own tries.
OF_ONE_REQUEST = {"authorization", "x-amz-date", "user-agent", "amz-sdk-invocation-id", "amz-sdk-request"}
NAMES = ["a", "a b/c%20d+e", "größe/温度/x", "..a/b..", "%2F/%", "a=1/b=2", "'\"&<>/#?", "~(*)!"]


def store_at(faults: FaultServer, **settings: Any) -> S3Store:
    given = {"endpoint_url": faults.endpoint_url, "access_key_id": "key", "secret_access_key": SECRET}
    return S3Store("bucket", "lake", StorageS3(**{**given, "addressing_style": "path", **settings}))


def is_of_the_sdk(seen: Seen) -> bool:
    return "amz-sdk-request" in seen.headers


def lasting_headers(seen: Seen) -> dict[str, str]:
    return {name.lower(): value for name, value in seen.headers.items() if name.lower() not in OF_ONE_REQUEST}


async def put(store: S3Store, *names: str, content: bytes = b"1") -> None:
    for name in names:
        await store.put(name, MemoryBlob(content))


async def error_of(store: S3Store, *names: str) -> StorageError:
    """Put all of them; return the error of the last one."""
    await put(store, *names[:-1])
    with pytest.raises(StorageError) as caught:
        await put(store, names[-1])
    return caught.value


def using(store: S3Store, work: Any) -> Any:
    async def main() -> Any:
        try:
            return await work
        finally:
            await store.close()

    return asyncio.run(main())


class TestRequests:
    @pytest.mark.parametrize("settings", [{}, {"server_side_encryption": "aws:kms"}, {"region": "eu-west-9"}])
    @pytest.mark.parametrize("name", NAMES)
    def test_are_those_of_the_sdk(self, faults: FaultServer, name: str, settings: dict[str, Any]) -> None:
        store = store_at(faults, **settings)
        using(store, put(store, name, name))
        first, second = faults.requests
        assert is_of_the_sdk(first)
        assert not is_of_the_sdk(second)
        assert second.path == first.path
        assert lasting_headers(second) == lasting_headers(first)

    @pytest.mark.parametrize("size", [0, 1, 70_000, 256 * KB, 256 * KB + 1])
    def test_carry_length_checksum_and_hash_of_their_own_bytes(self, faults: FaultServer, size: int) -> None:
        store = store_at(faults)

        async def work() -> None:
            await put(store, "first")
            await put(store, "b", content=b"x" * size)

        using(store, work())
        headers = faults.requests[1].headers
        content = b"x" * size
        assert headers["Content-Length"] == str(size)
        assert headers["x-amz-checksum-crc32"] == base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        assert headers["x-amz-content-sha256"] == hashlib.sha256(content).hexdigest()
        assert is_of_the_sdk(faults.requests[1]) is (size > 256 * KB)

    @pytest.mark.parametrize("name", NAMES)
    def test_are_signed_so_that_a_server_finds_the_same(self, faults: FaultServer, name: str) -> None:
        store = store_at(faults, region="eu-west-9")
        using(store, put(store, "first", name, content=b"abc"))
        seen = faults.requests[1]
        _, _, signed = seen.headers["Authorization"].partition("SignedHeaders=")
        headers = {name: seen.headers[name] for name in signed.partition(",")[0].split(";")}
        assert {"host", "x-amz-checksum-crc32", "x-amz-content-sha256", "x-amz-date"} <= set(headers)
        request = AWSRequest("PUT", faults.endpoint_url + seen.path, headers, b"abc")
        request.context["timestamp"] = seen.headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials("key", SECRET).get_frozen_credentials(), "s3", "eu-west-9")
        text = signer.string_to_sign(request, signer.canonical_request(request))
        assert seen.headers["Authorization"].endswith(f"Signature={signer.signature(text, request)}")

    def test_carry_no_checksum_when_the_sdk_is_told_so(
        self, faults: FaultServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
        store = store_at(faults)
        using(store, put(store, "first", "b"))
        assert not is_of_the_sdk(faults.requests[1])
        assert not [name for name in faults.requests[1].headers if "checksum" in name.lower()]

    def test_go_through_a_proxy_and_name_the_bucket_in_the_host(
        self, faults: FaultServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", faults.endpoint_url)
        store = store_at(faults, endpoint_url="http://s3.arcpipe-test.invalid", addressing_style="virtual")
        using(store, put(store, "first", "b"))
        assert [seen.path for seen in faults.requests] == [
            "http://bucket.s3.arcpipe-test.invalid/lake/first",
            "http://bucket.s3.arcpipe-test.invalid/lake/b",
        ]
        assert not is_of_the_sdk(faults.requests[1])

    def test_come_after_the_first_of_many_at_once_has_succeeded(self, faults: FaultServer) -> None:
        store = store_at(faults)

        async def work() -> None:
            await asyncio.gather(*(put(store, f"a{number}") for number in range(20)))
            await asyncio.gather(*(put(store, f"b{number}") for number in range(20)))

        using(store, work())
        later = [seen for seen in faults.requests if seen.path.startswith("/bucket/lake/b")]
        assert len(later) == 20
        assert not any(map(is_of_the_sdk, later))

    def test_are_left_to_an_sdk_whose_session_is_not_known(self, faults: FaultServer) -> None:
        store = store_at(faults)

        async def work() -> None:
            await store.delete("connects")
            assert store._client is not None
            assert store._client._session is not None
            store._client._session = None
            await put(store, "a", "b")

        using(store, work())
        assert all(map(is_of_the_sdk, faults.requests))

    def test_use_the_credentials_of_the_moment(self, faults: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Credentials of a role are renewed while the client lives."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "former")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        store = store_at(faults, access_key_id="", secret_access_key="")

        async def work() -> None:
            await put(store, "first", "b")
            assert store._client is not None
            credentials = store._client._sdk._request_signer._credentials
            credentials.access_key, credentials.token = "renewed", "a-token"
            await put(store, "c")

        using(store, work())
        assert "Credential=former/" in faults.requests[1].headers["Authorization"]
        assert "Credential=renewed/" in faults.requests[2].headers["Authorization"]
        assert faults.requests[2].headers["x-amz-security-token"] == "a-token"
        assert not is_of_the_sdk(faults.requests[2])

    def test_store_every_byte(self, s3: S3Bucket) -> None:
        settings = StorageS3(
            endpoint_url=s3.endpoint_url, access_key_id=s3.access_key_id, secret_access_key=s3.secret_access_key
        )
        store = S3Store(s3.bucket, "lake", settings)

        async def work() -> None:
            for name in NAMES:
                await put(store, name, content=name.encode() * 100)

        using(store, work())
        assert {key: s3.read(key) for key in s3.list_keys()} == {f"lake/{name}": name.encode() * 100 for name in NAMES}


FAULTS: dict[str, Answer] = {
    "throttled": refuses(503, "SlowDown"),
    "no code": refuses(502),
    "internal": refuses(500, "InternalError"),
    "denied": refuses(403, "AccessDenied"),
    "bad key": refuses(403, "InvalidAccessKeyId"),
    "no bucket": refuses(404, "NoSuchBucket"),
    "clock": refuses(403, "RequestTimeTooSkewed"),
    "full": refuses(507, "XMinioStorageFull"),
    "damaged on the way": refuses(400, "BadDigest"),
    "too long": refuses(400, "KeyTooLongError"),
    "a page of a proxy": lambda request: request.reply(503, "<html><br>down", Content_Type="text/html"),
    "reset": lambda request: (request.body(), request.reset()),
    "closed": lambda request: (request.body(), request.end()),
    "cut short": lambda request: (
        request.body(),
        request.wfile.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\n<Error>"),
        request.end(),
    ),
    "no HTTP": lambda request: (request.body(), request.wfile.write(b"this is no HTTP\r\n\r\n"), request.end()),
    "no ETag": lambda request: request.reply(200),
    "another checksum": lambda request: request.reply(200, ETag='"x"', x_amz_checksum_crc32="AAAAAA=="),
    "an error under a 200": refuses(200, "InternalError"),
    "a web page": lambda request: request.reply(200, "<html>a web server</html>"),
    "a web page with an ETag": lambda request: request.reply(
        200, "<html>sign in</html>", ETag='"x"', Content_Type="text/html; charset=utf-8"
    ),
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_are_told_as_those_of_the_sdk(self, faults: FaultServer, fault: str) -> None:
        faults.answers = [FAULTS[fault]]
        store = store_at(faults)
        wanted = using(store, error_of(store, "a"))
        faults.requests.clear()
        faults.answers = [taken, FAULTS[fault]]
        store = store_at(faults)
        found = using(store, error_of(store, "first", "a"))
        assert str(found) == str(wanted)
        assert isinstance(found, S3Error)
        assert isinstance(wanted, S3Error)
        assert (found.kind, found.status, found.code, found.is_passing) == (
            *(wanted.kind, wanted.status, wanted.code, wanted.is_passing),
        )
        assert not is_of_the_sdk(faults.requests[1])

    @pytest.mark.parametrize("fault", FAULTS)
    def test_leave_the_next_put_to_the_sdk(self, faults: FaultServer, fault: str) -> None:
        """One request, because the caller retries and counts; but the SDK has to judge what came with a 200."""
        requests = 2 if fault in ("an error under a 200", "a web page", "a web page with an ETag") else 1
        faults.answers = [taken, *[FAULTS[fault]] * requests, taken]
        store = store_at(faults)

        async def work() -> None:
            await error_of(store, "first", "a")
            assert len(faults.requests) == 1 + requests
            await put(store, "a", "b")

        using(store, work())
        assert is_of_the_sdk(faults.requests[-2])
        assert not is_of_the_sdk(faults.requests[-1])

    def test_of_a_server_that_does_not_answer_is_a_timeout(self, faults: FaultServer) -> None:
        faults.answers = [taken, lambda request: (request.body(), request.faults.over.wait())]
        settings = StorageS3(endpoint_url=faults.endpoint_url, access_key_id="key", secret_access_key=SECRET)
        store = S3Store("bucket", "lake", settings, connect_timeout_seconds=5, read_timeout_seconds=0.3)
        assert using(store, error_of(store, "first", "a")).kind == "timeout"

    def test_of_a_bucket_that_moved_are_healed_by_the_sdk(self, faults: FaultServer) -> None:
        def answer(request: Request) -> None:
            if "/eu-west-9/" in request.headers["Authorization"] or len(faults.requests) == 1:
                request.reply(200, ETag='"x"')
            else:
                text = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>"
                request.reply(400, text, x_amz_bucket_region="eu-west-9")

        faults.answers = [answer]
        store = store_at(faults)

        async def work() -> None:
            await error_of(store, "first", "a")
            await put(store, "a", "b")

        using(store, work())
        assert "/eu-west-9/" in faults.requests[-1].headers["Authorization"]
        assert not is_of_the_sdk(faults.requests[-1])


class TestUnusualServers:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(lambda request: request.reply(200, "<Fine/>", ETag='"x"'), id="a body"),
            pytest.param(
                lambda request: (
                    request.body(),
                    request.wfile.write(
                        b'HTTP/1.1 200 OK\r\nETag: "x"\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n<Fine/>\r\n0\r\n\r\n'
                    ),
                ),
                id="a body of unknown length",
            ),
        ],
    )
    def test_that_send_a_body_have_all_puts_made_by_the_sdk(self, faults: FaultServer, answer: Answer) -> None:
        faults.answers = [answer]
        store = store_at(faults)
        using(store, put(store, "a", "b", "c"))
        assert len(faults.requests) == 3
        assert all(map(is_of_the_sdk, faults.requests))
