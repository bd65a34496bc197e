"""Repeat a put that the SDK made, for another small object: with its name, its bytes and a signature of its own.

The SDK needs 2 ms of CPU time for each put, most of it for what is the same for all objects of a bucket: parameters
are checked, the endpoint is resolved, 30 hooks are called. So the SDK makes a client's first put, and hands over what
it was about to sign. Its signer signs the repetitions, with the credentials of the moment, and its HTTP session sends
them: so proxies, certificates, connections and time limits are the same.

Only what the SDK did without anything unusual is repeated, and only a plain success counts. After all else the caller
lets the SDK make the next put, because it can do more: follow a redirect to another region, for instance.

This module must not know blobs, time limits, nor when to retry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from botocore.utils import percent_encode

_CHECKSUM: Final = "x-amz-checksum-crc32"
# Headers that each put has of its own.
_OF_ONE_PUT: Final = frozenset(
    (_CHECKSUM, "authorization", "content-length", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token")
)
_PARSER: Final = create_parser("rest-xml")  # of errors, which have the same form for all requests


class Content:
    """The bytes of an object, and their part of the signature.

    Not plain bytes: the HTTP client would send those once more, unseen, after a connection broke.
    """

    def __init__(self, data: bytes | memoryview, signed_as: str) -> None:
        self._data = data
        self.signed_as = signed_as

    def __len__(self) -> int:
        return len(self._data)

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        yield self._data


class Unsigned(NamedTuple):
    """A request of the SDK just before it is signed."""

    url: str
    headers: dict[str, str]
    signer: Any
    signing: dict[str, str]  # the signer's arguments

    @classmethod
    def of(
        cls, request: Any, request_signer: Any, signing_name: str, region_name: str, signature_version: str
    ) -> Unsigned:
        """Copy what the SDK tells to a hook of `before-sign`."""
        chosen = request.context.get("signing", {})
        signing = {
            "signing_name": chosen.get("signing_name") or signing_name,
            "region_name": chosen.get("region") or region_name,
            "signature_version": signature_version,
        }
        return cls(request.url, dict(request.headers.items()), request_signer, signing)


class RepeatedPut:
    """Makes puts like one that the SDK made."""

    def __init__(self, session: Any, base_url: str, made: Unsigned) -> None:
        self._session = session
        self._base_url = base_url
        self._headers = {name: value for name, value in made.headers.items() if name.lower() not in _OF_ONE_PUT}
        self._signer = made.signer
        self._signing = made.signing

    async def send(self, name: str, content: Content, crc: str | None) -> dict[str, Any] | None:
        """Put an object.

        Args:
            crc: the header's CRC32 of the content, if it is to be sent.

        Returns:
            The fields of the SDK's answer that prove that the object was stored; None if only the SDK can judge that.

        Raises:
            ClientError: the server refused it. Other errors are those of the SDK, too.
        """
        request = AWSRequest("PUT", self._base_url + _quoted(name), data=content)
        # A dictionary costs a fifth of the SDK's own headers, which compare names without case. The signer writes its
        # names as it looks for them.
        request.headers = self._headers.copy() if crc is None else {**self._headers, _CHECKSUM: crc}
        auth = await self._signer.get_auth_instance(**self._signing)
        if "Host" not in self._headers:  # which the signer would look for in each URL, twice
            self._headers["Host"] = request.headers["Host"] = auth.headers_to_sign(request)["host"]
        auth.add_auth(request)
        # What `AWSRequest.prepare` makes, by way of a dictionary that looks for each name twice.
        request.headers["Content-Length"] = str(len(content))
        response = await self._session.send(AWSPreparedRequest("PUT", request.url, request.headers, content, False))
        body = await response.content
        if response.status_code >= 300:
            answer = {"status_code": response.status_code, "headers": response.headers, "body": body}
            raise ClientError(_PARSER.parse(answer, None), "PutObject")
        if body:  # it may be an error all the same
            return None
        return {"ETag": response.headers.get("etag"), "ChecksumCRC32": response.headers.get(_CHECKSUM)}


def repeated(
    session: Any, made: Unsigned, name: str, answer: dict[str, Any], signature_version: str
) -> RepeatedPut | None:
    """Make ready to repeat a put of the SDK; None where something about it is unusual.

    Args:
        session: the SDK's HTTP session.
        name: of the object that was put.
        answer: of the SDK.
        signature_version: that of a signer that takes `signed_as` from the content.
    """
    base_url = made.url.removesuffix(_quoted(name))
    told = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    is_usual = (
        base_url != made.url
        and base_url.endswith("/")
        and made.signing["signature_version"] == signature_version
        and told.get("content-length") == "0"
    )
    return RepeatedPut(session, base_url, made) if is_usual else None


def _quoted(name: str) -> str:
    quoted: str = percent_encode(name, safe="/~")  # as the SDK does it
    return quoted
