"""The options of a client: what they mean, their defaults, and which values they may have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from arcpipe.client.errors import ClientError
from arcpipe.names import DATABASE_RULE, is_database_name
from arcpipe.units import GB, MB

Precision = Literal["auto", "ns", "us", "ms", "s"]
Compression = Literal["none", "gzip", "zstd"]
SpoolSync = Literal["always", "batch", "never"]

MAX_URLS: Final = 64

_VISIBLE: Final = re.compile(r"[\x21-\x7e]*\Z")  # ASCII without blanks: a token, and a URL that http.client takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client may be told. Sizes are bytes before compression; times are seconds."""

    database: str = "default"
    token: str = field(default="", repr=False)  # options are printed and logged
    precision: Precision = "auto"
    """The unit of times. `auto` reads it from the size; for line protocol it means nanoseconds."""
    compression: Compression = "none"

    # A batch is sent when the first of these is reached.
    batch_records: int = 5000
    batch_bytes: int = 1 * MB
    batch_age_seconds: float = 1.0

    # Without a spool.
    memory_bytes: int = 64 * MB
    """Records that wait take at most this."""
    when_full: Literal["block", "raise"] = "block"
    block_seconds: float | None = None
    """How long a call waits for room before it raises `Full`; None waits as long as it takes."""

    spool: str | Path | None = None
    """A directory of this client alone. Accepted records are there until they are sent, and survive a crash."""
    spool_bytes: int = 1 * GB
    spool_sync: SpoolSync = "batch"
    """What a power cut may take: `always` nothing, `batch` what was not sent yet, `never` also the exactly once."""

    connect_seconds: float = 5.0
    answer_seconds: float = 30.0
    """For sending a batch, and again for its answer, from the first byte to the last."""
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 30.0
    give_up_seconds: float | None = None
    """How long one batch is tried; None tries for ever. A batch that is given up is told as refused."""
    failover_seconds: float = 60.0
    """How long a batch that a node may have written is tried at that node alone, before another one gets it."""

    ca_file: str | Path | None = None
    """PEM certificates to trust instead of the system's."""
    certificate_file: str | Path | None = None
    """The client's own certificate, with its chain."""
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ClientError: one of them is not allowed; the text says which and why.
        """
        for name in ("database", "token"):
            value = getattr(self, name)
            if not isinstance(value, str):  # such as that of a variable that is not set; it may be secret
                raise ClientError(f"{name}: it is no text but {type(value).__name__}")
        if not is_database_name(self.database):
            raise ClientError(f"database: {self.database!r} is no database name; {DATABASE_RULE}")
        if _VISIBLE.match(self.token) is None:
            raise ClientError("token: it has characters that no token has, such as a space or a newline")
        self._check_numbers()
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in allowed:
                raise ClientError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.key_file is not None and self.certificate_file is None:
            raise ClientError("key_file: it needs certificate_file, too")

    def _check_numbers(self) -> None:
        for name in ("batch_records", "batch_bytes", "memory_bytes", "spool_bytes"):
            if getattr(self, name) < 1:
                raise ClientError(f"{name}: {getattr(self, name)!r} is not 1 or more")
        for name in (
            *("batch_age_seconds", "connect_seconds", "answer_seconds", "first_pause_seconds"),
            *("longest_pause_seconds", "failover_seconds"),
        ):
            value = getattr(self, name)
            if not 0 < value < 1e6 and not (value == 0 and name in ("batch_age_seconds", "failover_seconds")):
                raise ClientError(f"{name}: {value!r} is no time that can be waited")
        for name, longest in (("block_seconds", 1e9), ("give_up_seconds", float("inf"))):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds <= longest:
                raise ClientError(f"{name}: {seconds!r} is no time that can be waited; None is for ever")


_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "precision": ("auto", "ns", "us", "ms", "s"),
    "compression": ("none", "gzip", "zstd"),
    "when_full": ("block", "raise"),
    "spool_sync": ("always", "batch", "never"),
}


class Node(NamedTuple):
    """One server, as a URL names it."""

    url: str
    host: str  # the path of the socket for unix:
    port: int
    scheme: Literal["http", "https", "unix"]
    path: str  # ahead of the path of each request


def read_urls(urls: str | Sequence[str]) -> list[Node]:
    """Read the URLs of one or several servers.

    Raises:
        ClientError: there is none, there are too many, or one is no URL of a server.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    if not 1 <= len(given) <= MAX_URLS:
        raise ClientError(f"urls: there are {len(given)}; give 1 to {MAX_URLS}")
    nodes = [_read_url(url) for url in given]
    if len({node.url for node in nodes}) != len(nodes):
        raise ClientError("urls: the same one is there twice")
    return nodes


def _read_url(url: str) -> Node:
    if url.startswith("unix:") and len(url) > len("unix:"):
        return Node(url, url.removeprefix("unix:"), 0, "unix", "")
    if "@" in url.partition("://")[2].partition("/")[0]:  # first of all: other texts show the URL
        raise ClientError("url: it has a user or a password; give the token as the option token")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or not _VISIBLE.match(url):
        raise ClientError(f"url: {url!r} is not a URL such as http://127.0.0.1:8000 or unix:/path/of.sock")
    if parts.scheme == "https":
        return Node(url, host, port or 443, "https", parts.path.rstrip("/"))
    return Node(url, host, port or 80, "http", parts.path.rstrip("/"))
