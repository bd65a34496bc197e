"""S3: how objects are kept, and credentials that end. The server says what it has kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import MemoryBlob
from arcpipe.storage.s3 import S3Store
from arcpipe.units import MB
from tests.support.s3faults import SECRET, FaultServer, refuses
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.sts import TokenService

pytestmark = pytest.mark.usefixtures("no_credentials_of_this_machine")

KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
KEPT = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KEY, "StorageClass": "STANDARD_IA"}


def options(s3: S3Bucket, **changes: Any) -> StorageS3:
    return StorageS3(
        endpoint_url=s3.endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        addressing_style="path",
        **changes,
    )


def test_every_object_has_the_key_and_the_storage_class(s3: S3Bucket) -> None:
    wanted = options(s3, server_side_encryption="aws:kms", kms_key_id=KEY, storage_class="STANDARD_IA")
    store = S3Store(s3.bucket, "lake", wanted, multipart_threshold_bytes=5 * MB, part_bytes=5 * MB)

    async def main() -> None:
        await store.check()
        await store.put("first", MemoryBlob(b"1"))
        await store.put("repeated", MemoryBlob(b"2"))
        await store.put("in parts", MemoryBlob(os.urandom(6 * MB)))
        assert await store.put_new("new", MemoryBlob(b"3"))
        await store.move("first", "moved")
        await store.close()

    uvloop.run(main())
    heads = {key: s3.client().head_object(Bucket=s3.bucket, Key=key) for key in s3.list_keys()}
    assert {key.removeprefix("lake/") for key in heads} == {"first", "repeated", "in parts", "new", "moved"}
    for key, head in heads.items():
        assert {name: head.get(name) for name in KEPT} == KEPT, key


@pytest.mark.parametrize(
    ("code", "next_step"),
    [
        ("KMS.DisabledException", "Check the key in storage.s3.kms_key_id"),
        ("InvalidStorageClass", "Correct storage.s3.storage_class"),
    ],
)
def test_a_wrong_key_or_class_is_told_with_its_setting(faults: FaultServer, code: str, next_step: str) -> None:
    faults.answers = [refuses(400, code)]
    store = S3Store("b", "", StorageS3(endpoint_url=faults.endpoint_url, access_key_id="k", secret_access_key=SECRET))
    error = failure(store)
    assert code in str(error)
    assert next_step in str(error)


def put(store: S3Store, *names: str) -> None:
    async def main() -> None:
        try:
            for name in names:
                await store.put(name, MemoryBlob(name.encode()))
        finally:
            await store.close()

    uvloop.run(main())


def failure(store: S3Store) -> StorageError:
    with pytest.raises(StorageError) as caught:
        put(store, "a")
    return caught.value


def test_a_session_token_goes_with_every_request(s3: S3Bucket) -> None:
    with FaultyProxy(s3.endpoint_url) as proxy:
        proxy.session_token = "the-token"
        given = replace(options(s3, session_token="the-token"), endpoint_url=proxy.url)
        put(S3Store(s3.bucket, "", given), "a", "b")
        assert s3.list_keys() == ["a", "b"]
        error = failure(S3Store(s3.bucket, "", replace(given, session_token="an-old-one")))
    assert error.kind == "credentials"
    assert "ExpiredToken" in str(error)
    assert "Give new keys with their storage.s3.session_token" in str(error)
    assert "an-old-one" not in str(error)


class TestWebIdentity:
    """`AWS_ROLE_ARN` and `AWS_WEB_IDENTITY_TOKEN_FILE`, as Kubernetes gives them to a pod."""

    @pytest.fixture
    def service(self, s3: S3Bucket, proxy: FaultyProxy) -> Iterator[TokenService]:
        def newest_only(token: str) -> None:
            proxy.session_token = token

        with TokenService(s3.endpoint_url, newest_only) as service:
            yield service

    @pytest.fixture
    def token(self, service: TokenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "identity"
        path.write_text("an identity")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/arcpipe")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(path))
        return path

    def test_credentials_are_got_once_while_they_live(
        self, s3: S3Bucket, proxy: FaultyProxy, service: TokenService, token: Path
    ) -> None:
        put(S3Store(s3.bucket, "", StorageS3(endpoint_url=proxy.url)), "a", "b", "c")
        assert s3.list_keys() == ["a", "b", "c"]
        (asked,) = service.asked
        assert asked["Action"] == "AssumeRoleWithWebIdentity"
        assert asked["RoleArn"] == "arn:aws:iam::111122223333:role/arcpipe"
        assert asked["WebIdentityToken"] == "an identity"

    def test_they_are_renewed_with_the_file_of_the_moment(
        self, s3: S3Bucket, proxy: FaultyProxy, service: TokenService, token: Path
    ) -> None:
        """The proxy refuses all tokens but the newest one, so no request had an old one."""
        store = S3Store(s3.bucket, "", StorageS3(endpoint_url=proxy.url))

        async def main() -> None:
            service.seconds = 300  # the SDK renews what ends within ten minutes
            await store.put("a", MemoryBlob(b"1"))
            token.write_text("the next identity")  # noqa: ASYNC240 - a line
            service.seconds = 3600
            await store.put("b", MemoryBlob(b"2"))
            await store.put("c", MemoryBlob(b"3"))
            await store.close()

        uvloop.run(main())
        assert s3.list_keys() == ["a", "b", "c"]
        assert [asked["WebIdentityToken"] for asked in service.asked][-1] == "the next identity"
        assert proxy.injected.total() == 0

    def test_a_refused_identity_is_told_with_what_to_check(
        self, proxy: FaultyProxy, service: TokenService, token: Path
    ) -> None:
        service.refuses = True
        error = failure(S3Store("b", "", StorageS3(endpoint_url=proxy.url)))
        assert error.kind == "credentials"
        assert "AssumeRoleWithWebIdentity: HTTP 400 InvalidIdentityToken: unknown issuer" in str(error)
        assert "Check AWS_ROLE_ARN" in str(error)

    def test_a_missing_token_file_is_named_and_found_later(self, s3: S3Bucket, proxy: FaultyProxy, token: Path) -> None:
        token.unlink()
        store = S3Store(s3.bucket, "", StorageS3(endpoint_url=proxy.url))

        async def main() -> None:
            with pytest.raises(StorageError) as caught:
                await store.put("a", MemoryBlob(b"1"))
            assert caught.value.kind == "credentials"
            assert f"cannot read {token}: No such file or directory" in str(caught.value)
            token.write_text("an identity")  # noqa: ASYNC240 - a line
            await store.put("a", MemoryBlob(b"1"))
            await store.close()

        uvloop.run(main())
        assert s3.list_keys() == ["a"]
