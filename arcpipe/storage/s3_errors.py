"""Explain failures of an S3 server: kind, reason, next step, and whether a retry may help.

This module knows the errors of the SDK, the HTTP client and sockets, and the error codes of many servers. It must not
know requests, parts or blobs.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError

from arcpipe.errors import StorageError

NOT_S3 = "the answer reports success, but is not one of S3; is this an S3 endpoint?"

_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
_CREDENTIALS = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_CLOCK_SKEW = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_NO_SPACE = frozenset({"InsufficientCapacity", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
_TIMEOUT = frozenset({"RequestTimeout", "RequestTimeoutException"})
_OTHER_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)
# The body was changed or lost on the way, or another request used the same object at the same time.
_PASSING = frozenset({"BadDigest", "IncompleteBody", "OperationAborted", "XAmzContentChecksumMismatch"})
_PASSING_KINDS = frozenset({"connection", "dns", "timeout", "throttled", "server_error"})

# Errors of the SDK when it finds no credentials, or cannot get or renew them.
_NO_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.NoAuthTokenError,
    sdk.TokenRetrievalError,
    sdk.ProfileNotFound,
    sdk.SSOError,
)

_NEXT_STEP = {
    "connection": "Check that the server is up and that storage.s3.endpoint_url, proxy and firewall let it be reached",
    "dns": "Check the host name in storage.s3.endpoint_url (or storage.s3.region) and this machine's name servers",
    "timeout": "Check the network and the load of the server",
    "throttled": "The server wants fewer requests: lower uploader.concurrent_uploads if this goes on",
    "server_error": "The fault is the server's: see its status page or its log if this goes on",
    "missing_bucket": "Create the bucket, or correct storage.url",
    "clock_skew": "Set the clock of this machine: run an NTP client",
    "no_space": "Free space or raise the quota on the server",
    "other": "See the reason given",
}

# The permission that each request needs, by its name in a policy.
_ACTIONS = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "copy_object": "s3:GetObject and s3:PutObject",
    "head_object": "s3:GetObject (and s3:ListBucket, without which S3 answers so for an object that is not there)",
    "head_bucket": "s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
}
_EXPIRED_STEP: Final = (
    "Give new keys with their storage.s3.session_token and restart, or leave all three empty for credentials of this "
    "process that are renewed"
)
_ROLE_STEP: Final = (
    "Check AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE of this process, and that the role trusts who issued the token"
)
# By the first word of the code.
_WRONG_SETTING: Final = {
    "KMS": "Check the key in storage.s3.kms_key_id, and its state in KMS",
    "InvalidStorageClass": "Correct storage.s3.storage_class",
}
_ALL_ACTIONS = "s3:PutObject, s3:DeleteObject, s3:GetObject and s3:AbortMultipartUpload"


class S3Error(StorageError):
    """A StorageError with the HTTP status and the error code of the server; 0 and empty without an answer."""

    def __init__(self, message: str, kind: str, status: int = 0, code: str = "", is_passing: bool = False) -> None:
        super().__init__(message, kind)
        self.status = status
        self.code = code
        self.is_passing = is_passing  # the same request may succeed a moment later


class _Explanation(NamedTuple):
    kind: str
    reason: str
    next_step: str = ""  # empty means the one of the kind
    status: int = 0
    code: str = ""


def explain(action: str, place: str, error: Exception, operation: str = "") -> StorageError:
    """Turn an error of the SDK, the HTTP client or a socket into a StorageError. Nothing else does that.

    Args:
        action: a verb for a sentence that begins with "cannot".
        place: the object and the endpoint.
        operation: the SDK's name of the request; empty if no request was made.
    """
    if isinstance(error, StorageError):
        return error
    found = _explain_answer(error) if isinstance(error, sdk.ClientError) else _explain_exception(error)
    next_step = found.next_step
    if not next_step and found.kind == "credentials":
        next_step = (
            "Check storage.s3.access_key_id and secret_access_key (or the AWS credentials of this process), "
            f"and that they allow {_ACTIONS.get(operation, _ALL_ACTIONS)} here"
        )
    return failure(action, place, found.reason, found.kind, next_step, found.status, found.code)


def failure(
    action: str,
    place: str,
    reason: str,
    kind: str = "other",
    next_step: str = "",
    status: int = 0,
    code: str = "",
    *,
    is_passing: bool = False,
) -> S3Error:
    """Make an error from its parts. Without a `next_step` it gets the one of its kind."""
    message = f"cannot {action} {place}: {reason}. {next_step or _NEXT_STEP[kind]}"
    return S3Error(message, kind, status, code, is_passing or kind in _PASSING_KINDS or code in _PASSING)


def is_passing(error: StorageError) -> bool:
    """Tell if the same request may succeed a moment later."""
    return isinstance(error, S3Error) and error.is_passing


def is_denied(error: S3Error) -> bool:
    """Tell if the server knows us and does not allow this request. An answer to HEAD has a status and no code."""
    return error.status == 403 and error.code in ("AccessDenied", "403", "Forbidden", "")


def is_not_offered(error: S3Error) -> bool:
    """Tell if the server does not support this request."""
    return error.status in (405, 501)


def _explain_answer(error: sdk.ClientError) -> _Explanation:
    """Explain an error that the server sent."""
    said = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    # If the server sent no code, the SDK uses the status as code.
    reason = f"HTTP {status}" if code in ("", str(status)) else f"HTTP {status} {code}"
    if message:
        reason += f": {_short(message)}"
    next_step = ""
    if code in _CLOCK_SKEW:
        kind = "clock_skew"
    elif code == "NoSuchBucket":
        kind = "missing_bucket"
    elif code in _THROTTLED or code.startswith("Throttl") or status == 429:
        kind = "throttled"
    elif code in _NO_SPACE or status == 507:
        kind = "no_space"
    elif code in _TIMEOUT or status == 408:
        kind = "timeout"
    elif code in _OTHER_REGION or status in (301, 307):
        kind = "other"
        region = said.get("Region") or "the bucket's region"
        next_step = f"Set storage.s3.region to {region}"
    elif error.operation_name.startswith("AssumeRole") and status < 500:  # the SDK asked for credentials
        kind, reason, next_step = "credentials", f"{error.operation_name}: {reason}", _ROLE_STEP
    elif code in _CREDENTIALS or status in (401, 403):
        kind = "credentials"
        next_step = _EXPIRED_STEP if code in _EXPIRED else ""
    elif status >= 500 or code == "InternalError":
        kind = "server_error"
    else:
        kind = "other"
        next_step = _WRONG_SETTING.get(code.partition(".")[0], "")
    return _Explanation(kind, reason, next_step, status, code)


def _explain_exception(error: Exception) -> _Explanation:
    """Explain why there was no answer, or no readable one."""
    causes = list(_causes(error))
    deepest = causes[-1]
    reason = _short(str(deepest)) or type(deepest).__name__
    next_step = ""
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        kind = "dns"
    elif isinstance(error, OSError) and isinstance(error.filename, str):  # the SDK reads only files with credentials
        kind, reason, next_step = "credentials", f"cannot read {error.filename}: {error.strerror}", _ROLE_STEP
    elif isinstance(error, _NO_CREDENTIALS):
        kind, reason = "credentials", _short(str(error))
    elif any(isinstance(cause, TimeoutError | sdk.ConnectTimeoutError | sdk.ReadTimeoutError) for cause in causes):
        kind, reason = "timeout", "no answer in time"
    elif isinstance(error, sdk.SSLError):
        kind, next_step = "connection", "Check the server's certificate (AWS_CA_BUNDLE names additional authorities)"
    elif isinstance(error, sdk.HTTPClientError | sdk.ConnectionError | OSError):
        kind = "connection"
    elif isinstance(error, ResponseParserError):
        kind, reason = "other", "the answer is not one of S3; is this an S3 endpoint?"
    else:
        kind, reason = "other", f"{type(error).__name__}: {_short(str(error))}"
    return _Explanation(kind, reason, next_step)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, outermost first. The SDK keeps a cause among its keyword arguments."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        kept = getattr(cause, "kwargs", {}).get("error")
        cause = kept if isinstance(kept, BaseException) else (cause.__cause__ or cause.__context__)


def _short(text: str) -> str:
    """Shorten a server's text to one line of at most 300 characters, for our log."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else line[:299] + "…"
