"""The S3 store against a real S3 server, and against a server that misbehaves in every way that S3 is known to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvloop
from msgspec.structs import replace

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import MemoryBlob, open_store
from arcpipe.storage.s3 import S3Store
from arcpipe.units import MB
from tests.support.blobs import FileBlob
from tests.support.http import free_port
from tests.support.s3faults import SECRET, Answer, FaultServer, Request, Seen, begins_upload, refuses, taken
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_credentials_of_this_machine")


def options(server: S3Bucket | FaultServer) -> StorageS3:
    return StorageS3(
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        addressing_style="path",
    )


def using(store: S3Store, work: Callable[[S3Store], Any]) -> Any:
    """Runs `work(store)` and closes the store."""

    async def main() -> Any:
        try:
            return await work(store)
        finally:
            await store.close()

    return uvloop.run(main())


async def warm_up(store: S3Store) -> None:
    """Makes the SDK read its models and certificates, which a short time limit may not survive."""
    with suppress(StorageError):
        await store.delete("warm-up")


def failure(store: S3Store, work: Callable[[S3Store], Any]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        using(store, work)
    assert SECRET not in str(caught.value)
    return caught.value


class TestAgainstARealServer:
    @pytest.fixture
    def store(self, s3: S3Bucket) -> S3Store:
        return S3Store(s3.bucket, "lake/arc", options(s3))

    @pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
    def test_put_stores_every_byte_under_the_prefix(self, s3: S3Bucket, store: S3Store, size: int) -> None:
        data = os.urandom(size)
        using(store, lambda store: store.put("db/cpu/a.parquet", MemoryBlob(pa.py_buffer(data))))
        assert s3.list_keys() == ["lake/arc/db/cpu/a.parquet"]
        assert s3.read("lake/arc/db/cpu/a.parquet") == data

    def test_put_works_on_the_loop_of_the_standard_library_too(self, s3: S3Bucket) -> None:
        async def main() -> None:
            store = open_store(f"s3://{s3.bucket}", options(s3))
            await store.put("a", MemoryBlob(os.urandom(2_000_000)))
            assert await store.list_keys("") == ["a"]
            await store.close()
            await store.close()

        asyncio.run(main())

    def test_put_replaces_the_former_object(self, s3: S3Bucket, store: S3Store) -> None:
        async def work(store: S3Store) -> None:
            await store.put("a", MemoryBlob(b"the former, longer"))
            await store.put("a", MemoryBlob(b"latter"))

        using(store, work)
        assert s3.read("lake/arc/a") == b"latter"

    def test_of_puts_of_a_new_object_at_once_one_wins(self, s3: S3Bucket, store: S3Store) -> None:
        """Commits of several nodes to one Delta table rest on it."""

        async def work(store: S3Store) -> dict[str, list[bool]]:
            return {
                key: await asyncio.gather(*(store.put_new(key, MemoryBlob(b"%d" % number)) for number in range(6)))
                for key in map(str, range(25))
            }

        won = using(store, work)
        assert {key: s3.read(f"lake/arc/{key}") for key in won} == {
            key: b"%d" % answers.index(True) for key, answers in won.items()
        }
        assert [sum(answers) for answers in won.values()] == [1] * len(won)

    def test_put_streams_a_blob_that_lives_in_a_file(self, s3: S3Bucket, store: S3Store, tmp_path: Path) -> None:
        path = tmp_path / "spool"
        path.write_bytes(os.urandom(3_000_001))
        using(store, lambda store: store.put("a", FileBlob(path)))
        assert s3.read("lake/arc/a") == path.read_bytes()

    @pytest.mark.parametrize("in_file", [False, True])
    def test_put_of_a_large_object_goes_in_parts_side_by_side(
        self, s3: S3Bucket, tmp_path: Path, in_file: bool
    ) -> None:
        data = os.urandom(23 * MB + 7)
        path = tmp_path / "spool"
        path.write_bytes(data)
        store = S3Store(
            s3.bucket, "lake", options(s3), multipart_threshold_bytes=8 * MB, part_bytes=5 * MB, parallel_parts=3
        )
        using(store, lambda store: store.put("a.parquet", FileBlob(path) if in_file else MemoryBlob(data)))
        assert s3.read("lake/a.parquet") == data
        assert s3.client().head_object(Bucket=s3.bucket, Key="lake/a.parquet")["ETag"].endswith('-5"')
        assert s3.uploads() == []

    def test_put_beyond_64_mb_goes_in_parts_by_default(self, s3: S3Bucket, store: S3Store) -> None:
        data = os.urandom(MB) * 66
        using(store, lambda store: store.put("a.parquet", MemoryBlob(data)))
        assert s3.read("lake/arc/a.parquet") == data
        assert s3.client().head_object(Bucket=s3.bucket, Key="lake/arc/a.parquet")["ETag"].endswith('-5"')

    def test_put_of_many_objects_at_once_stores_each(self, s3: S3Bucket, store: S3Store) -> None:
        wanted = {f"lake/arc/{i}": os.urandom(i * 100) for i in range(60)}

        async def work(store: S3Store) -> None:
            await asyncio.gather(*(store.put(str(i), MemoryBlob(wanted[f"lake/arc/{i}"])) for i in range(60)))

        using(store, work)
        assert {key: s3.read(key) for key in s3.list_keys()} == wanted

    def test_keys_with_spaces_percent_signs_and_utf8_come_back_as_given(self, s3: S3Bucket, store: S3Store) -> None:
        keys = sorted(["a b/c%20d+e", "größe/温度/x", "..a/b..", "%2F/%", "a=1/b=2", "'\"&<>/#?"])

        async def work(store: S3Store) -> None:
            for key in keys:
                await store.put(key, MemoryBlob(key.encode()))
            assert await store.list_keys("") == keys
            assert await store.list_keys("größe/") == ["größe/温度/x"]
            await store.delete("%2F/%")

        using(store, work)
        assert {key: s3.read(key) for key in s3.list_keys()} == {
            f"lake/arc/{key}": key.encode() for key in keys if key != "%2F/%"
        }

    def test_list_goes_beyond_one_page(self, s3: S3Bucket, store: S3Store) -> None:
        count = s3.page_keys + 3
        wanted = sorted(f"db/{i}" for i in range(count))
        some = f"db/{count // 10}"
        s3.client().put_object(Bucket=s3.bucket, Key="lake/arcade/other", Body=b"")

        async def work(store: S3Store) -> None:
            await asyncio.gather(*(store.put(key, MemoryBlob(b"")) for key in wanted))
            assert await store.list_keys("") == wanted
            assert await store.list_keys(some) == [some, f"{some}0", f"{some}1", f"{some}2"]
            assert await store.list_keys("nothing") == []

        using(store, work)

    def test_delete_removes_the_object_and_of_a_missing_one_is_fine(self, s3: S3Bucket, store: S3Store) -> None:
        async def work(store: S3Store) -> None:
            await store.put("a", MemoryBlob(b"1"))
            await store.put("b", MemoryBlob(b"2"))
            await store.delete("a")
            await store.delete("a")

        using(store, work)
        assert s3.list_keys() == ["lake/arc/b"]

    def test_check_leaves_nothing_behind(self, s3: S3Bucket, store: S3Store) -> None:
        using(store, lambda store: store.check())
        assert s3.list_keys() == []
        assert s3.uploads() == []

    def test_put_that_is_cancelled_aborts_its_upload(self, s3: S3Bucket) -> None:
        store = S3Store(s3.bucket, "", options(s3), multipart_threshold_bytes=MB, part_bytes=5 * MB, parallel_parts=1)
        begun = threading.Event()
        go_on = threading.Event()

        class Gated:
            size = 12 * MB

            def read_at(self, offset: int, length: int) -> bytes:
                if offset >= 5 * MB:
                    begun.set()
                    assert go_on.wait(30)
                return bytes(length)

        async def work(store: S3Store) -> None:
            put = asyncio.create_task(store.put("a.parquet", Gated()))
            assert await asyncio.to_thread(begun.wait, 30)
            put.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await put

        using(store, work)
        assert s3.list_keys() == []
        assert s3.uploads() == []

    def test_put_that_fails_to_read_its_source_aborts_its_upload(self, s3: S3Bucket) -> None:
        """Put that fails to read its source aborts its upload and says what failed."""

        class Broken:
            size = 12 * MB

            def read_at(self, offset: int, length: int) -> bytes:
                if offset >= 6 * MB:
                    raise OSError(5, "Input/output error")
                return bytes(length)

        store = S3Store(s3.bucket, "", options(s3), multipart_threshold_bytes=MB, part_bytes=5 * MB)
        error = failure(store, lambda store: store.put("a.parquet", Broken()))
        assert "data to be stored" in str(error)
        assert s3.list_keys() == []
        assert s3.uploads() == []

    def test_a_missing_bucket_is_named(self, s3: S3Bucket) -> None:
        wrong = f"{s3.bucket}-not"
        for work in (
            lambda store: store.put("a", MemoryBlob(b"1")),
            lambda store: store.list_keys(""),
            lambda store: store.abort_uploads("a"),
            lambda store: store.check(),
        ):
            error = failure(S3Store(wrong, "", options(s3)), work)
            assert error.kind == "missing_bucket"
            assert wrong in str(error)
            assert "Create the bucket" in str(error)
            assert s3.endpoint_url in str(error)

    def test_the_default_credential_chain_is_used_when_no_keys_are_set(
        self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
        store = S3Store(s3.bucket, "", StorageS3(endpoint_url=s3.endpoint_url))
        using(store, lambda store: store.put("a", MemoryBlob(b"1")))
        assert s3.list_keys() == ["a"]

    def test_credentials_that_appear_later_are_found_without_a_restart(self, s3: S3Bucket) -> None:
        credentials_file = Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"])

        async def work(store: S3Store) -> None:
            with pytest.raises(StorageError) as caught:
                await store.put("a", MemoryBlob(b"1"))
            assert caught.value.kind == "credentials"
            await asyncio.to_thread(
                credentials_file.write_text,
                f"[default]\naws_access_key_id={s3.access_key_id}\naws_secret_access_key={s3.secret_access_key}\n",
            )
            await store.put("a", MemoryBlob(b"1"))

        using(S3Store(s3.bucket, "", StorageS3(endpoint_url=s3.endpoint_url)), work)
        assert s3.list_keys() == ["a"]


def faulty(server: FaultServer, **settings: Any) -> S3Store:
    return S3Store("bucket", "lake", options(server), **settings)


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "code", "kind", "next_step"),
        [
            (500, "InternalError", "server_error", "status page"),
            (500, "", "server_error", "status page"),
            (502, "", "server_error", "status page"),
            (503, "ServiceUnavailable", "server_error", "status page"),
            (503, "SlowDown", "throttled", "concurrent_uploads"),
            (503, "SlowDownWrite", "throttled", "concurrent_uploads"),
            (429, "", "throttled", "concurrent_uploads"),
            (400, "ThrottlingException", "throttled", "concurrent_uploads"),
            (403, "InvalidAccessKeyId", "credentials", "access_key_id"),
            (403, "SignatureDoesNotMatch", "credentials", "access_key_id"),
            (403, "AccessDenied", "credentials", "s3:PutObject"),
            (403, "", "credentials", "s3:PutObject"),
            (401, "Unauthorized", "credentials", "access_key_id"),
            (400, "ExpiredToken", "credentials", "credentials of this process"),
            (404, "NoSuchBucket", "missing_bucket", "Create the bucket"),
            (403, "RequestTimeTooSkewed", "clock_skew", "NTP"),
            (400, "RequestTimeout", "timeout", "network"),
            (507, "XMinioStorageFull", "no_space", "Free space"),
            (403, "QuotaExceeded", "no_space", "quota"),
            (400, "KeyTooLongError", "other", "reason"),
        ],
    )
    def test_of_the_server_has_its_kind_its_code_and_a_next_step(
        self, faults: FaultServer, status: int, code: str, kind: str, next_step: str
    ) -> None:
        """Of the server has its kind its code and a next step and is not retried here."""
        faults.answers = [refuses(status, code)]
        error = failure(faulty(faults), lambda store: store.put("a", MemoryBlob(b"1")))
        assert error.kind == kind
        for part in ("s3://bucket/lake/a", faults.endpoint_url, str(status), code, next_step):
            assert part in str(error)
        assert len(faults.requests) == 1

    @pytest.mark.parametrize("operation", ["delete", "list_keys", "abort_uploads", "check"])
    def test_of_every_other_operation_is_explained_too(self, faults: FaultServer, operation: str) -> None:
        faults.answers = [refuses(503, "SlowDown")]
        error = failure(
            faulty(faults), lambda store: getattr(store, operation)(*(["a"] if operation != "check" else []))
        )
        assert error.kind == "throttled"

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(Request.reset, id="reset before reading"),
            pytest.param(lambda request: (request.rfile.read1(1000), request.reset()), id="reset mid-body"),
            pytest.param(lambda request: (request.body(), request.reset()), id="reset instead of an answer"),
            pytest.param(lambda request: (request.body(), request.end()), id="closed instead"),
            pytest.param(
                lambda request: (
                    request.body(),
                    request.wfile.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\n<Error>"),
                    request.end(),
                ),
                id="answer cut short",
            ),
            pytest.param(
                lambda request: (
                    request.body(),
                    request.wfile.write(b"this is no HTTP\r\n\r\n"),
                    request.end(),
                ),
                id="no HTTP",
            ),
        ],
    )
    @pytest.mark.parametrize("size", [1, 8 * MB])
    def test_of_the_connection_at_any_point_is_a_connection_fault(
        self, faults: FaultServer, answer: Answer, size: int
    ) -> None:
        faults.answers = [answer]
        error = failure(faulty(faults), lambda store: store.put("a", MemoryBlob(bytes(size))))
        assert error.kind == "connection"
        assert "endpoint_url" in str(error)

    @pytest.mark.parametrize("size", [1, 8 * MB])
    def test_of_a_server_that_refuses_an_unread_body_is_no_timeout(self, faults: FaultServer, size: int) -> None:
        """Of a server that refuses before it has read the body is not a timeout."""

        def answer(request: Request) -> None:
            request.wfile.write(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            request.close_connection = True

        # With the body still on its way, the reset that follows may overtake the answer.
        faults.answers = [answer]
        error = failure(faulty(faults), lambda store: store.put("a", MemoryBlob(bytes(size))))
        assert error.kind in ("server_error", "connection")

    def test_of_a_server_that_does_not_answer_is_a_timeout(self, faults: FaultServer) -> None:
        faults.answers = [lambda request: (request.body(), request.faults.over.wait())]
        store = faulty(faults, connect_timeout_seconds=5, read_timeout_seconds=0.3)
        assert failure(store, lambda store: store.put("a", MemoryBlob(b"1"))).kind == "timeout"

    @pytest.mark.parametrize("in_file", [False, True])
    def test_of_a_server_that_stops_reading_is_a_timeout(
        self, faults: FaultServer, tmp_path: Path, in_file: bool
    ) -> None:
        """Of a server that stops reading is a timeout and its connection does not stay."""
        faults.answers = [lambda request: (request.faults.over.wait(), request.reset())]
        path = tmp_path / "spool"
        path.write_bytes(bytes(32 * MB))
        blob = FileBlob(path) if in_file else MemoryBlob(path.read_bytes())

        async def work(store: S3Store) -> None:
            with pytest.raises(StorageError) as caught:
                await store.put("a", blob)
            assert caught.value.kind == "timeout"
            await asyncio.to_thread(
                wait_until, lambda: not connections_to(faults.endpoint_url), "the connection to end"
            )

        using(faulty(faults, connect_timeout_seconds=0.5, read_timeout_seconds=0.5), work)

    def test_a_slow_body_that_moves_is_no_timeout(self, faults: FaultServer) -> None:
        class Slow:
            size = 16 * MB

            def read_at(self, offset: int, length: int) -> bytes:
                if offset % MB == 0:
                    faults.over.wait(0.25)
                return bytes(length)

        # Sending takes at least 4 s, longer than the whole request may stand still.
        store = faulty(faults, connect_timeout_seconds=1.5, read_timeout_seconds=1.5)

        async def work(store: S3Store) -> None:
            await warm_up(store)
            await store.put("a", Slow())

        using(store, work)

    def test_of_a_refused_connection_names_the_endpoint(self) -> None:
        endpoint = f"http://127.0.0.1:{free_port()}"
        store = S3Store("bucket", "", StorageS3(endpoint_url=endpoint, access_key_id="k", secret_access_key=SECRET))
        for work in (
            lambda store: store.put("a", MemoryBlob(b"1")),
            lambda store: store.check(),
            lambda store: store.list_keys(""),
            lambda store: store.delete("a"),
        ):
            error = failure(store_like(store), work)
            assert error.kind == "connection"
            assert endpoint in str(error)

    def test_of_a_host_name_that_is_unknown_is_dns(self) -> None:
        endpoint = "http://s3.arcpipe-test.invalid:9000"
        store = S3Store("bucket", "", StorageS3(endpoint_url=endpoint, access_key_id="k", secret_access_key=SECRET))
        error = failure(store, lambda store: store.put("a", MemoryBlob(b"1")))
        assert error.kind == "dns"
        assert "host name" in str(error)

    def test_of_missing_credentials_says_where_to_set_them(self, faults: FaultServer) -> None:
        store = S3Store("bucket", "", StorageS3(endpoint_url=faults.endpoint_url))
        error = failure(store, lambda store: store.put("a", MemoryBlob(b"1")))
        assert error.kind == "credentials"
        assert "storage.s3.access_key_id" in str(error)
        assert faults.requests == []

    def test_of_a_tls_handshake_points_to_the_certificate(self, faults: FaultServer) -> None:
        settings = replace(options(faults), endpoint_url=faults.endpoint_url.replace("http:", "https:"))
        error = failure(S3Store("bucket", "", settings), lambda store: store.put("a", MemoryBlob(b"1")))
        assert error.kind == "connection"

    def test_the_region_that_the_server_wants_is_named(self, faults: FaultServer) -> None:
        faults.answers = [refuses(400, "AuthorizationHeaderMalformed", more="<Region>eu-west-9</Region>")]
        error = failure(faulty(faults), lambda store: store.put("a", MemoryBlob(b"1")))
        assert "Set storage.s3.region to eu-west-9" in str(error)

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(lambda request: request.reply(200), id="no ETag"),
            pytest.param(lambda request: request.reply(200, "<html>a web server</html>"), id="a web page"),
            pytest.param(
                lambda request: request.reply(200, ETag='"x"', x_amz_checksum_crc32="AAAAAA=="), id="other checksum"
            ),
            pytest.param(
                lambda request: request.reply(200, "<html>sign in</html>", ETag='"x"', Content_Type="text/html"),
                id="a web page with an ETag",
            ),
        ],
    )
    def test_an_answer_that_is_no_receipt_is_not_taken_for_one(self, faults: FaultServer, answer: Answer) -> None:
        faults.answers = [answer]
        failure(faulty(faults), lambda store: store.put("a", MemoryBlob(b"1")))

    @pytest.mark.parametrize("page", ["", "<html>a web server</html>", "<html><br>not XML</html>", "{}"])
    def test_a_web_page_for_a_listing_is_not_taken_for_an_empty_one(self, faults: FaultServer, page: str) -> None:
        faults.answers = [lambda request: request.reply(200, page, Content_Type="text/html")]
        failure(faulty(faults), lambda store: store.list_keys(""))

    def test_a_listing_that_never_ends_is_an_error(self, faults: FaultServer) -> None:
        page = (
            "<ListBucketResult><IsTruncated>true</IsTruncated>"
            "<NextContinuationToken>t</NextContinuationToken></ListBucketResult>"
        )
        faults.answers = [lambda request: request.reply(200, page)]
        failure(faulty(faults), lambda store: store.list_keys(""))
        assert len(faults.requests) == 2

    def test_a_put_after_a_fault_succeeds_on_the_same_store(self, faults: FaultServer) -> None:
        faults.answers = [lambda request: (request.rfile.read(1000), request.reset()), refuses(503, "SlowDown"), taken]
        blob = MemoryBlob(os.urandom(8 * MB))

        async def work(store: S3Store) -> None:
            for kind in ("connection", "throttled"):
                with pytest.raises(StorageError) as caught:
                    await store.put("a", blob)
                assert caught.value.kind == kind
            await store.put("a", blob)

        using(faulty(faults), work)

    def test_no_more_requests_run_at_once_than_connections_are_allowed(self, faults: FaultServer) -> None:
        under_way: list[int] = []
        most: list[int] = []

        def answer(request: Request) -> None:
            under_way.append(1)
            most.append(len(under_way))
            request.faults.over.wait(0.3)
            under_way.pop()
            request.reply(200, ETag='"x"')

        faults.answers = [answer]
        store = faulty(faults, max_connections=3, connect_timeout_seconds=3, read_timeout_seconds=3)

        async def work(store: S3Store) -> None:
            await warm_up(store)
            # 7.5 s in all, longer than a request may take: waiting for its turn does not count.
            await asyncio.gather(*(store.put(str(i), MemoryBlob(b"1")) for i in range(75)))

        using(store, work)
        assert max(most) <= 3


# The ETag of an object of four parts, whose ETags are all zeros.
OF_FOUR_PARTS = f'"{hashlib.md5(bytes(16 * 4)).hexdigest()}-4"'


class TestFaultsOfUploadsInParts:
    def put(self, faults: FaultServer) -> StorageError:
        store = faulty(
            faults, multipart_threshold_bytes=MB, part_bytes=5 * MB, parallel_parts=2, part_pause_seconds=0.01
        )
        return failure(store, lambda store: store.put("a", MemoryBlob(bytes(16 * MB))))

    def aborted(self, faults: FaultServer) -> bool:
        return any(request.command == "DELETE" and "uploadId=u1" in request.path for request in faults.requests)

    def test_a_refused_part_fails_the_put_and_aborts_the_upload(self, faults: FaultServer) -> None:
        faults.answers = [
            lambda request: (
                begins_upload(request)
                if request.command == "POST"
                else refuses(503, "SlowDown")(request)
                if "partNumber=2" in request.path
                else taken(request)
            )
        ]
        assert self.put(faults).kind == "throttled"
        assert self.aborted(faults)

    @pytest.mark.parametrize(
        "completion",
        [
            pytest.param(refuses(500, "InternalError"), id="500"),
            pytest.param(refuses(200, "InternalError"), id="an error under a 200"),
            pytest.param(lambda request: request.reply(200), id="nothing"),
            pytest.param(Request.reset, id="reset"),
        ],
    )
    def test_a_failed_completion_fails_the_put_and_aborts_the_upload(
        self, faults: FaultServer, completion: Answer
    ) -> None:
        faults.answers = [
            lambda request: (
                begins_upload(request)
                if "uploads" in request.path
                else completion(request)
                if request.command == "POST"
                else taken(request)
            )
        ]
        self.put(faults)
        assert self.aborted(faults)

    def test_an_abort_that_fails_does_not_hide_why_the_put_failed(self, faults: FaultServer) -> None:
        faults.answers = [begins_upload, refuses(503, "SlowDown"), refuses(500)]
        assert self.put(faults).kind in ("throttled", "server_error")
        assert self.aborted(faults)

    def test_check_aborts_what_began_over_a_day_ago(self, faults: FaultServer) -> None:
        def answer(request: Request) -> None:
            if request.command == "POST":
                begins_upload(request)
            elif request.command == "GET":
                request.reply(
                    200,
                    "<ListMultipartUploadsResult>"
                    "<Upload><Key>lake/old</Key><UploadId>u-old</UploadId>"
                    "<Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>"
                    "<Upload><Key>lake/new</Key><UploadId>u-new</UploadId>"
                    "<Initiated>2099-01-01T00:00:00.000Z</Initiated></Upload>"
                    "<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
                )
            else:
                request.reply(204)

        faults.answers = [answer]
        using(faulty(faults), lambda store: store.check())
        aborted = [request.path for request in faults.requests if request.command == "DELETE"]
        assert [path for path in aborted if "u-old" in path]
        assert not [path for path in aborted if "u-new" in path]

    def test_check_without_a_prefix_aborts_no_upload_that_it_did_not_begin(self, faults: FaultServer) -> None:
        faults.answers = [lambda request: begins_upload(request) if request.command == "POST" else request.reply(204)]
        using(S3Store("bucket", "", options(faults)), lambda store: store.check())
        assert [request.path for request in faults.requests if request.command == "GET"] == []
        assert all("u1" in request.path for request in faults.requests if "uploadId" in request.path)

    @pytest.mark.parametrize(
        ("answer", "tries"),
        [
            pytest.param(refuses(503, "SlowDown"), 4, id="slow down"),
            pytest.param(refuses(500, "InternalError"), 4, id="internal error"),
            pytest.param(Request.reset, 4, id="reset"),
            pytest.param(
                lambda request: request.reply(200, ETag='"x"', x_amz_checksum_crc32="AAAAAA=="), 4, id="other checksum"
            ),
            pytest.param(refuses(400, "BadDigest"), 4, id="changed on the way"),
            pytest.param(refuses(403, "AccessDenied"), 1, id="denied"),
            pytest.param(refuses(404, "NoSuchUpload"), 1, id="no such upload"),
            pytest.param(refuses(507, "XMinioStorageFull"), 1, id="full"),
        ],
    )
    def test_a_part_is_tried_again_a_few_times_and_only_where_that_may_help(
        self, faults: FaultServer, answer: Answer, tries: int
    ) -> None:
        faults.answers = [
            lambda request: (
                begins_upload(request)
                if request.command == "POST"
                else answer(request)
                if "partNumber=2" in request.path
                else taken(request)
            )
        ]
        self.put(faults)
        assert len([request for request in faults.requests if "partNumber=2" in request.path]) == tries
        assert self.aborted(faults)

    def test_an_answer_to_a_completion_is_lost_only_where_one_could_be(self, faults: FaultServer) -> None:
        """Somebody else aborted the upload: an older object of this name does not show that it was completed."""
        faults.answers = [
            lambda request: (
                begins_upload(request)
                if "uploads" in request.path
                else refuses(404, "NoSuchUpload")(request)
                if request.command == "POST"
                else taken(request)
            )
        ]
        assert "NoSuchUpload" in str(self.put(faults))
        assert not [request for request in faults.requests if request.command == "HEAD"]

    def completed(self, head: Answer) -> Answer:
        """Answers of a server that completes the upload, fails to say so, and is asked again."""
        completions = iter([Request.reset])
        return lambda request: (
            begins_upload(request)
            if "uploads" in request.path
            else next(completions, refuses(404, "NoSuchUpload"))(request)
            if request.command == "POST"
            else head(request)
            if request.command == "HEAD"
            else request.reply(200, ETag=f'"{"0" * 32}"')
        )

    def test_a_completion_whose_answer_was_lost_is_proven_by_the_object(self, faults: FaultServer) -> None:
        faults.answers = [self.completed(lambda request: request.reply(200, "x" * 16 * MB, ETag=OF_FOUR_PARTS))]
        store = faulty(faults, multipart_threshold_bytes=MB, part_bytes=5 * MB, part_pause_seconds=0.01)
        using(store, lambda store: store.put("a", MemoryBlob(bytes(16 * MB))))
        assert not self.aborted(faults)

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(refuses(404), id="no object"),
            pytest.param(refuses(403), id="may not look"),
            pytest.param(lambda request: request.reply(200, "x" * 16 * MB, ETag='"etag"'), id="other ETag"),
            pytest.param(lambda request: request.reply(200, "x", ETag=OF_FOUR_PARTS), id="other size"),
        ],
    )
    def test_a_completion_that_cannot_be_proven_fails_the_put(self, faults: FaultServer, head: Answer) -> None:
        faults.answers = [self.completed(head)]
        assert "NoSuchUpload" in str(self.put(faults))
        assert len([request for request in faults.requests if request.command == "HEAD"]) == 1


MULTIPART: dict[str, Any] = {"multipart_threshold_bytes": MB, "part_bytes": 5 * MB, "part_pause_seconds": 0.01}


class TestUploadsInPartsThroughAFaultyNetwork:
    """A real server behind a proxy that goes wrong once."""

    @pytest.fixture
    def store(self, s3: S3Bucket, proxy: FaultyProxy) -> S3Store:
        return S3Store(s3.bucket, "lake", replace(options(s3), endpoint_url=proxy.url), **MULTIPART)

    def sent(self, proxy: FaultyProxy, part: int) -> int:
        return len([request for request in proxy.seen if f"partNumber={part}" in request])

    @pytest.mark.parametrize("fault", ["reset in the body", "lost answer", "slow down", "internal error"])
    def test_a_part_that_fails_once_is_sent_again_and_no_other(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store, fault: str
    ) -> None:
        data = os.urandom(23 * MB)
        proxy.fail_next(fault, target="partNumber=3")
        using(store, lambda store: store.put("a", MemoryBlob(data)))
        assert s3.read("lake/a") == data
        assert proxy.injected == {fault: 1}
        assert [self.sent(proxy, part) for part in (1, 2, 3, 4, 5)] == [1, 1, 2, 1, 1]
        assert not [request for request in proxy.seen if request.startswith("DELETE")]
        assert s3.uploads() == []

    @pytest.mark.parametrize("fault", ["internal error", "reset at once", "lost answer", "cut answer"])
    def test_a_completion_that_fails_once_costs_no_part(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store, fault: str
    ) -> None:
        data = os.urandom(12 * MB)
        proxy.fail_next(fault, method="POST", target="uploadId=")
        using(store, lambda store: store.put("a", MemoryBlob(data)))
        assert s3.read("lake/a") == data
        assert proxy.injected == {fault: 1}
        assert [self.sent(proxy, part) for part in (1, 2, 3)] == [1, 1, 1]
        assert not [request for request in proxy.seen if request.startswith("DELETE")]
        assert s3.uploads() == []

    def test_an_upload_that_could_not_be_aborted_is_aborted_by_the_next_put(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store
    ) -> None:
        data = os.urandom(12 * MB)
        proxy.fail_next("clock skew", target="partNumber=2")
        proxy.fail_next("internal error", method="DELETE")

        async def work(store: S3Store) -> None:
            with pytest.raises(StorageError, match="RequestTimeTooSkewed"):
                await store.put("a", MemoryBlob(data))
            assert s3.uploads() == ["lake/a"]
            await store.put("a", MemoryBlob(data))

        using(store, work)
        assert s3.read("lake/a") == data
        assert s3.uploads() == []


class TestWhatAFormerTryLeft:
    @pytest.fixture
    def store(self, s3: S3Bucket) -> S3Store:
        return S3Store(s3.bucket, "lake", options(s3))

    def begin(self, s3: S3Bucket, name: str) -> None:
        s3.client().create_multipart_upload(Bucket=s3.bucket, Key=name)

    def test_exists_tells_an_object_from_one_whose_name_only_begins_so(self, s3: S3Bucket, store: S3Store) -> None:
        async def work(store: S3Store) -> None:
            await store.put("a/bc", MemoryBlob(b"1"))
            assert await store.exists("a/bc")
            for key in ("a/b", "a/bcd", "a", "lake/a/bc"):
                assert not await store.exists(key)
            await store.delete("a/bc")
            assert not await store.exists("a/bc")

        using(store, work)

    def test_exists_does_not_tell_of_a_bucket_that_is_missing(self, s3: S3Bucket) -> None:
        error = failure(S3Store(f"{s3.bucket}-not", "", options(s3)), lambda store: store.exists("a"))
        assert error.kind == "missing_bucket"

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [(refuses(500), "server_error"), (Request.reset, "connection")],
    )
    def test_exists_raises_where_it_cannot_tell(self, faults: FaultServer, answer: Answer, kind: str) -> None:
        faults.answers = [answer]
        assert failure(faulty(faults), lambda store: store.exists("a")).kind == kind

    def test_exists_raises_where_it_cannot_tell_about_the_bucket(self, faults: FaultServer) -> None:
        faults.answers = [refuses(404), refuses(503)]
        assert failure(faulty(faults), lambda store: store.exists("a")).kind == "server_error"

    @pytest.mark.parametrize("bucket", [200, 403])
    def test_exists_needs_no_right_to_the_bucket(self, faults: FaultServer, bucket: int) -> None:
        faults.answers = [refuses(404), lambda request: request.reply(bucket)]
        assert using(faulty(faults), lambda store: store.exists("a")) is False

    def test_abort_uploads_aborts_those_of_this_key_and_no_others(self, s3: S3Bucket, store: S3Store) -> None:
        for name in ("lake/a", "lake/a", "lake/ab", "lake/a/b", "a"):
            self.begin(s3, name)

        async def work(store: S3Store) -> None:
            assert await store.abort_uploads("a") == 2
            assert await store.abort_uploads("a") == 0

        using(store, work)
        assert sorted(s3.uploads()) == ["a", "lake/a/b", "lake/ab"]

    def test_abort_uploads_goes_beyond_one_page(self, faults: FaultServer) -> None:
        def page(upload: str, more: str) -> Answer:
            text = (
                "<ListMultipartUploadsResult>"
                f"<Upload><Key>lake/a</Key><UploadId>{upload}</UploadId></Upload>{more}</ListMultipartUploadsResult>"
            )
            return lambda request: request.reply(200, text)

        following = "<NextKeyMarker>lake/a</NextKeyMarker><NextUploadIdMarker>u1</NextUploadIdMarker>"
        faults.answers = [
            page("u1", f"<IsTruncated>true</IsTruncated>{following}"),
            page("u2", "<IsTruncated>false</IsTruncated>"),
            lambda request: request.reply(204),
        ]
        assert using(faulty(faults), lambda store: store.abort_uploads("a")) == 2
        assert "upload-id-marker=u1" in faults.requests[1].path
        assert {request.path.split("uploadId=")[1] for request in faults.requests[2:]} == {"u1", "u2"}

    @pytest.mark.parametrize(
        "answer", [refuses(403, "AccessDenied"), refuses(501, "NotImplemented")], ids=["denied", "not offered"]
    )
    def test_abort_uploads_that_may_not_list_warns_and_goes_on(
        self, faults: FaultServer, caplog: pytest.LogCaptureFixture, answer: Answer
    ) -> None:
        faults.answers = [answer]
        assert using(faulty(faults), lambda store: store.abort_uploads("a")) == 0
        assert "multipart uploads of lake/a that an earlier try left open, if any, stay" in caplog.text

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [(refuses(503, "SlowDown"), "throttled"), (refuses(403, "InvalidAccessKeyId"), "credentials")],
    )
    def test_abort_uploads_that_cannot_list_raises(self, faults: FaultServer, answer: Answer, kind: str) -> None:
        faults.answers = [answer]
        assert failure(faulty(faults), lambda store: store.abort_uploads("a")).kind == kind


# How requests of each kind look, as method and target.
WRITES = r"^(PUT|POST) .*"
DELETES = r"^DELETE (?!.*uploadId)"
ABORTS = r"^DELETE .*uploadId"
LOOKS = r"^HEAD /[^/?]+/."
LISTS = r"^GET /[^/?]+/?\?|^HEAD /[^/?]+$"


class TestARoleThatLacksAPermission:
    @pytest.fixture
    def store(self, s3: S3Bucket, proxy: FaultyProxy) -> S3Store:
        return S3Store(s3.bucket, "lake", replace(options(s3), endpoint_url=proxy.url), **MULTIPART)

    @pytest.mark.parametrize(
        ("denied", "action"),
        [(WRITES, "s3:PutObject"), (DELETES, "s3:DeleteObject"), (ABORTS, "s3:AbortMultipartUpload")],
    )
    def test_fails_the_check_which_names_it(self, proxy: FaultyProxy, store: S3Store, denied: str, action: str) -> None:
        proxy.deny(denied)
        error = failure(store, lambda store: store.check())
        assert error.kind == "credentials"
        assert f"allow {action} here" in str(error)

    def test_to_abort_leaves_one_upload_open_however_often_the_check_is_tried(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store
    ) -> None:
        async def work(store: S3Store) -> None:
            proxy.deny(ABORTS)
            for _ in range(3):
                with pytest.raises(StorageError):
                    await store.check()
            assert len(s3.uploads()) == 1
            proxy.deny()
            await store.check()

        using(store, work)
        assert s3.uploads() == []

    def test_to_list_works_from_the_check_to_the_redo(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Without it, S3 answers 403 instead of 404 to a HEAD.
        proxy.deny(LISTS, r"^HEAD .*(missing|write-check)")
        data = os.urandom(12 * MB)
        caplog.set_level("INFO")

        async def work(store: S3Store) -> None:
            await store.check()
            assert "cannot tell whether objects may be looked for" in caplog.text
            assert "abandoned multipart uploads, if there are any, stay" in caplog.text
            assert await store.abort_uploads("a") == 0
            proxy.fail_next("lost answer", method="POST", target="uploadId=")
            await store.put("a", MemoryBlob(data))
            assert await store.exists("a")
            assert not any(await asyncio.gather(*(store.exists(f"missing {number}") for number in range(16))))
            assert not await store.exists("missing")
            await store.delete("missing")

        using(store, work)
        assert s3.read("lake/a") == data
        assert s3.list_keys() == ["lake/a"]

    def test_to_look_for_objects_cannot_tell_whether_one_is_there(self, proxy: FaultyProxy, store: S3Store) -> None:
        proxy.deny(LOOKS)

        async def work(store: S3Store) -> None:
            await store.put("a", MemoryBlob(b"1"))
            for key in ("a", "missing"):
                with pytest.raises(StorageError, match="s3:GetObject"):
                    await store.exists(key)

        using(store, work)

    def test_to_look_for_objects_passes_the_check_which_cannot_tell(
        self, proxy: FaultyProxy, store: S3Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.deny(LOOKS)
        caplog.set_level("INFO")
        using(store, lambda store: store.check())
        assert "cannot tell whether objects may be looked for" in caplog.text

    def test_to_list_leaves_no_version_where_an_object_is_looked_for(
        self, s3: S3Bucket, proxy: FaultyProxy, store: S3Store
    ) -> None:
        s3.client().put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
        proxy.deny(r"^HEAD .*missing")
        assert not using(store, lambda store: store.exists("missing"))
        found = s3.client().list_object_versions(Bucket=s3.bucket)
        assert (found.get("Versions", []), found.get("DeleteMarkers", [])) == ([], [])

    def test_check_leaves_no_version_in_a_bucket_that_keeps_them(self, s3: S3Bucket, store: S3Store) -> None:
        s3.client().put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
        using(store, lambda store: store.check())
        found = s3.client().list_object_versions(Bucket=s3.bucket)
        assert (found.get("Versions", []), found.get("DeleteMarkers", [])) == ([], [])


def test_more_uploads_at_once_than_32_have_a_connection_each(faults: FaultServer) -> None:
    under_way: set[str] = set()
    all_there = threading.Event()

    def answer(request: Request) -> None:
        under_way.add(request.path)
        if len(under_way) == 40:
            all_there.set()
        if all_there.wait(30):
            request.reply(200, ETag='"x"')
        else:
            request.reset()

    faults.answers = [answer]
    store = open_store("s3://bucket/lake", options(faults), uploads_at_once=40)

    async def main() -> None:
        await asyncio.gather(*(store.put(str(i), MemoryBlob(b"1")) for i in range(40)))
        await store.close()

    uvloop.run(main())


class TestRequests:
    def put(self, faults: FaultServer, size: int = 1000, **changes: Any) -> Seen:
        settings = StorageS3(
            **{
                "endpoint_url": faults.endpoint_url,
                "access_key_id": "k",
                "secret_access_key": SECRET,
                **changes,
            }
        )
        using(S3Store("bucket", "lake", settings), lambda store: store.put("a", MemoryBlob(bytes(size))))
        return faults.requests[0]

    @pytest.mark.parametrize("encryption", ["AES256", "aws:kms", "aws:kms:dsse"])
    def test_ask_for_encryption_when_set(self, faults: FaultServer, encryption: str) -> None:
        request = self.put(faults, server_side_encryption=encryption)
        assert request.headers["x-amz-server-side-encryption"] == encryption

    def test_ask_for_no_encryption_by_default(self, faults: FaultServer) -> None:
        assert "x-amz-server-side-encryption" not in self.put(faults).headers

    def test_of_uploads_in_parts_ask_for_encryption_once(self, faults: FaultServer) -> None:
        settings = StorageS3(
            endpoint_url=faults.endpoint_url,
            access_key_id="k",
            secret_access_key=SECRET,
            server_side_encryption="AES256",
        )
        completed = "<CompleteMultipartUploadResult><ETag>x-1</ETag></CompleteMultipartUploadResult>"
        faults.answers = [begins_upload, taken, lambda request: request.reply(200, completed)]
        store = S3Store("bucket", "", settings, multipart_threshold_bytes=MB)
        using(store, lambda store: store.put("a", MemoryBlob(bytes(2 * MB))))
        assert [request.headers["x-amz-server-side-encryption"] for request in faults.requests] == [
            "AES256",
            None,
            None,
        ]
        assert faults.requests[0].headers["x-amz-checksum-algorithm"] == "CRC32"

    def test_carry_checksum_and_length_and_wait_for_no_continue(self, faults: FaultServer) -> None:
        """Carry the checksum of the body and its length and do not wait for a continue."""
        request = self.put(faults, 8 * MB)
        crc = zlib.crc32(bytes(8 * MB)).to_bytes(4, "big")
        assert request.headers["x-amz-checksum-crc32"] == base64.b64encode(crc).decode()
        assert request.headers["x-amz-content-sha256"] == hashlib.sha256(bytes(8 * MB)).hexdigest()
        assert request.headers["Content-Length"] == str(8 * MB)
        assert "Expect" not in request.headers
        assert "Content-Encoding" not in request.headers

    def test_carry_no_checksum_when_the_sdk_is_told_so(
        self, faults: FaultServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
        assert not [name for name in self.put(faults).headers if "checksum" in name.lower()]

    @pytest.mark.parametrize(
        ("region", "environment", "signed_for"),
        [("eu-central-1", "", "eu-central-1"), ("", "eu-west-3", "eu-west-3"), ("", "", "us-east-1")],
    )
    def test_are_signed_for_the_region_that_is_set_or_the_default(
        self,
        faults: FaultServer,
        monkeypatch: pytest.MonkeyPatch,
        region: str,
        environment: str,
        signed_for: str,
    ) -> None:
        if environment:
            monkeypatch.setenv("AWS_DEFAULT_REGION", environment)
        assert f"/{signed_for}/s3/aws4_request" in self.put(faults, region=region).headers["Authorization"]

    def test_to_an_own_endpoint_name_the_bucket_in_the_path(self, faults: FaultServer) -> None:
        """To an endpoint of ones own name the bucket in the path unless told otherwise."""
        assert self.put(faults).path == "/bucket/lake/a"
        assert self.put(faults, addressing_style="path").path == "/bucket/lake/a"

    def test_in_virtual_style_name_the_bucket_in_the_host(
        self, faults: FaultServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Seen by a proxy, because this machine need not resolve any name for that.
        monkeypatch.setenv("http_proxy", faults.endpoint_url)
        request = self.put(faults, endpoint_url="http://s3.arcpipe-test.invalid", addressing_style="virtual")
        assert request.path == "http://bucket.s3.arcpipe-test.invalid/lake/a"


def connections_to(endpoint_url: str) -> list[str]:
    """The TCP connections to this port that the kernel still has (proc_pid_net(5))."""
    port = f":{int(endpoint_url.rsplit(':', 1)[1]):04X}"
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Column 2 is the peer; state 06 is TIME_WAIT, which holds nothing.
    return [" ".join(fields) for fields in connections if fields[2].endswith(port) and fields[3] != "06"]


def store_like(store: S3Store) -> S3Store:
    """A new store with the same settings; a closed one is of no use."""
    return S3Store(store._bucket, "", store._options)


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/..", "a\0"])
def test_keys_that_are_no_plain_relative_path_are_refused(faults: FaultServer, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        using(faulty(faults), lambda store: store.put(key, MemoryBlob(b"1")))
    assert faults.requests == []
