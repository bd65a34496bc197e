"""Explain failures of Google's and Azure's stores: kind, reason, next step.

obstore has a class for few causes and a text for all others, so the text decides. A number alone is no status: names
and times have numbers, too. This module must not know requests.
"""

from __future__ import annotations

import re
from typing import Final

from obstore import exceptions as refusals

from arcpipe.errors import StorageError

MISSING: Final = (refusals.NotFoundError, FileNotFoundError)  # an object; of a list or a put, its bucket

_KINDS: Final = (
    ("throttled", re.compile(r"status code: 429\b|Too Many Requests|SlowDown|ServerBusy|rateLimitExceeded")),
    (
        "missing_bucket",
        re.compile(r"ContainerNotFound|NoSuchBucket|(bucket|container) does not exist", re.I),
    ),
    (
        "credentials",
        re.compile(r"status code: 40[13]\b|credential|AuthenticationFailed|AuthorizationFailure|token request", re.I),
    ),
    ("server_error", re.compile(r"status code: 5\d\d\b")),
    ("timeout", re.compile(r"timed out|timeout", re.I)),
    ("dns", re.compile(r"dns error|failed to lookup", re.I)),
    ("connection", re.compile(r"connect|error sending request|connection|broken pipe|reset by peer", re.I)),
)
_NEXT_STEP: Final = {
    "throttled": "The server wants fewer requests: lower uploader.concurrent_uploads if this goes on",
    "missing_bucket": "Create the bucket or container, or correct storage.url",
    "credentials": "Check the credentials in the service's environment, and that they may read, write, list and delete",
    "server_error": "The fault is the server's: see its status page if this goes on",
    "timeout": "Check the network and the load of the server",
    "dns": "Check the account's name and this machine's name servers",
    "connection": "Check that proxy and firewall let the server be reached",
    "other": "See the reason given",
}
# Signatures of shared access in URLs.
_SECRETS: Final = re.compile(r"((?:sig|signature|token|X-Goog-Signature|X-Goog-Credential)=)[^&\s\"')]+", re.I)
_LONGEST: Final = 400


def explain(action: str, place: str, error: Exception) -> StorageError:
    """Turn an error of obstore into a StorageError. Nothing else does that."""
    reason = reason_of(error)
    if isinstance(error, refusals.PermissionDeniedError | refusals.UnauthenticatedError):
        kind = "credentials"
    elif isinstance(error, MISSING):
        kind = "missing_bucket"
    else:
        kind = next((kind for kind, words in _KINDS if words.search(reason)), "other")
    return StorageError(f"cannot {action} {place}: {reason}. {_NEXT_STEP[kind]}", kind)


def reason_of(error: Exception) -> str:
    """Return the text of an error, in one line without secrets."""
    text = str(error).partition("\n\nDebug source")[0]
    return _SECRETS.sub(r"\1…", " ".join(text.split()))[:_LONGEST].rstrip(". ")
