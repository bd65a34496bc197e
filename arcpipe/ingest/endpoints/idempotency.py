"""The idempotency keys that a worker has acknowledged. `ingest.http.keys` reads them from requests.

The key goes into the meta of the request's entry. There the uploader finds it, which alone sees all workers: it uploads
the first entry of a key and drops the others (`upload.key_window`). That is the guarantee.

`RecentKeys` is a saving. A worker remembers the keys that it acknowledged last, and answers a retry without writing it
again. It notes a key only once its group is as durable as `wal.sync_mode` says. A retry that comes before is written
like any other request.

A key belongs to a database and to a token. So nobody learns the keys of another token by `Idempotency-Replayed`, and
nobody uses up a key that another token will send.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

REPLAYED: Final = b"Idempotency-Replayed: true\r\n"
"""The line of an answer to a request that was not written again."""

# Keys that a worker remembers, at most: about 20 MB.
RECENT_KEYS: Final = 65_536


Identity: TypeAlias = bytes
"""A key with all that it belongs to: the database's name, then the bytes of `KeyedPrefix.item` with key and token.

These begin with a byte that begins no character of UTF-8, so the name ends in one place only. Bytes know their hash.
"""
Content: TypeAlias = tuple[int, int]
"""The encoded body of a request, as far as it is compared with that of a retry: bytes and CRC32."""
Claim: TypeAlias = tuple[Identity, Content]


class RecentKeys:
    """The keys that one worker acknowledged last, in two generations: the older one is dropped as a whole.

    So it is bounded, and a key is never known for longer than the window. For one event loop.
    """

    def __init__(self, window_seconds: float, limit: int = RECENT_KEYS) -> None:
        """Begin with nothing.

        Args:
            window_seconds: the most that a key is known for.
            limit: the most keys that are known.
        """
        self._half_seconds = window_seconds / 2
        self._half_limit = max(1, limit // 2)
        self._began = self._old_began = 0.0  # of the two generations
        self._turns_at = 0.0  # when one of them is too old
        self._young: dict[Identity, Content] = {}
        self._old: dict[Identity, Content] = {}

    def find(self, identity: Identity, now: float) -> Content | None:
        """Return the content of the request that had this key; None if it is not known.

        Args:
            now: seconds of a clock that is the same for `note`.
        """
        if now >= self._turns_at:
            self._turn(now)
        return self._young.get(identity) or self._old.get(identity)

    def note(self, claims: Iterable[Claim], now: float) -> None:
        """Remember requests that were acknowledged."""
        if now >= self._turns_at:
            self._turn(now)
        for identity, content in claims:
            if len(self._young) >= self._half_limit:
                self._begin(now)
            self._young.setdefault(identity, content)

    def _turn(self, now: float) -> None:
        """Drop the generations that are too old."""
        if now - self._began >= self._half_seconds:
            self._begin(now)
        if now - self._old_began >= 2 * self._half_seconds:
            self._old = {}
        self._set_turn()

    def _begin(self, now: float) -> None:
        """Begin a generation."""
        self._old, self._old_began = self._young, self._began
        self._young, self._began = {}, now
        self._set_turn()

    def _set_turn(self) -> None:
        self._turns_at = self._began + self._half_seconds
        if self._old:
            self._turns_at = min(self._turns_at, self._old_began + 2 * self._half_seconds)
