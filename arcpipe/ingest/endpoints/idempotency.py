"""The idempotency keys that a worker has acknowledged. `ingest.http.keys` reads them from requests.

The key goes into the meta of the request's entry. There the uploader finds it, which alone sees all workers: it uploads
the first entry of a key and drops the others (`upload.key_window`). That is the guarantee.

`RecentKeys` is a saving. A worker remembers the keys that it wrote last, and answers a retry without writing it again.
It does so only once the group of the first request is as durable as `wal.sync_mode` says. A retry that comes before is
written like any other request.

A key belongs to a database and to a token. So nobody learns the keys of another token by `Idempotency-Replayed`, and
nobody uses up a key that another token will send.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Final, TypeAlias

from arcpipe.native import KERNEL
from arcpipe.wal.format import crc32

if TYPE_CHECKING:
    from arcpipe_native import RecentKeys as Kernel

REPLAYED: Final = b"Idempotency-Replayed: true\r\n"
"""The line of an answer to a request that was not written again."""

# Keys that a worker remembers, at most: about 20 MB, and 8 MB with the native kernel.
RECENT_KEYS: Final = 65_536


Claim: TypeAlias = tuple[int, int, int]
"""A request with a key that was given to the WAL: its number among those of the worker, then the bytes and the CRC32 of
its encoded body, which are compared with those of a retry.
"""


class RecentKeys:
    """The keys that one worker wrote last, in two generations: the older one is dropped as a whole.

    So it is bounded, and a key is never known for longer than the window. For one event loop.

    A request claims its key when it is given to the WAL, and groups come to the disk in the order of their claims. So
    the number of the last claim that is on disk tells of each whether it is: a group costs nothing for each key.
    """

    def __init__(self, window_seconds: float, limit: int = RECENT_KEYS) -> None:
        """Begin with nothing.

        Args:
            window_seconds: the most that a key is known for.
            limit: the most keys that are known.
        """
        self.claimed = 0
        """The number of the last claim."""
        self.settled = 0
        """The number of the last claim that is on disk or forgotten, as all before it are; the others wait."""
        self._forgotten = 0  # claims after those that were forgotten
        self._half_seconds = window_seconds / 2
        self._half_limit = max(1, limit // 2)
        self._began = self._old_began = 0.0  # of the two generations
        self._turns_at = 0.0  # when one of them is too old
        self._full_at = 0  # the number of the last claim that the young one has room for
        self._young: dict[bytes, Claim] = {}
        self._old: dict[bytes, Claim] = {}

    def claim(self, owner: bytes, key: bytes, body: bytes | memoryview, now: float, front: bytes = b"") -> int | None:
        """Claim a key for a request that is to be written.

        Args:
            owner: what the key belongs to: `KeyedPrefix.owner`.
            body: as it will be in the WAL.
            now: seconds of a clock that is the same for all calls.
            front: the bytes before `body`, as in `Encoded`.

        Returns:
            The number of the claim. None if an earlier request had this key and is on disk: the new one is not to be
            written, and has claimed nothing.
        """
        number = self.claimed + 1
        if now >= self._turns_at or number > self._full_at:
            self._turn(now)
        claim = number, len(body), crc32(body)
        if front:
            claim = number, len(front) + len(body), crc32(body, crc32(front))
        identity = owner + key
        first = self._young.setdefault(identity, claim)
        if first is not claim:
            if first[0] <= self.settled:
                return None
        elif identity in self._old:
            if self._old[identity][0] <= self.settled:
                del self._young[identity]
                return None
            del self._old[identity]
        self.claimed = number
        return number

    def earlier(self, owner: bytes, key: bytes) -> Claim:
        """Return the claim of the earlier request, right after `claim` has told that there is one."""
        identity = owner + key
        return self._young.get(identity) or self._old[identity]

    def settle(self, number: int) -> int:
        """Note that the claims up to a number are on disk, but for those that were forgotten.

        Returns:
            How many they are, without those of which this was known.
        """
        count = number - self.settled - self._forgotten
        self.settled = number
        self._forgotten = 0
        return count

    def forget(self, numbers: list[int]) -> None:
        """Forget claims, in their order, whose requests were not written, before any later one is settled."""
        if not numbers:
            return
        self._forgotten += len(numbers)
        forgotten = set(numbers)
        for claims in (self._young, self._old):
            # The last ones come first, so this takes as long as claims are waiting.
            waiting = takewhile(lambda item: item[1][0] >= numbers[0], reversed(claims.items()))
            for identity in [identity for identity, claim in waiting if claim[0] in forgotten]:
                del claims[identity]
        if self.settled + self._forgotten == self.claimed:
            self.settle(self.claimed)

    def _turn(self, now: float) -> None:
        """Begin a generation if the young one is full or half the window old, and drop the old one if it is too old."""
        if self.claimed >= self._full_at or now - self._began >= self._half_seconds:
            self._old, self._old_began = self._young, self._began
            self._young, self._began = {}, now
            self._full_at = self.claimed + self._half_limit
        if now - self._old_began >= 2 * self._half_seconds:
            self._old = {}
        self._turns_at = self._began + self._half_seconds
        if self._old:
            self._turns_at = min(self._turns_at, self._old_began + 2 * self._half_seconds)


AnyRecentKeys: TypeAlias = "RecentKeys | Kernel"

KEYS_KERNEL: Final[type[Kernel] | None] = None if KERNEL is None else KERNEL.RecentKeys


def recent_keys(
    window_seconds: float, limit: int = RECENT_KEYS, kernel: type[Kernel] | None = KEYS_KERNEL
) -> AnyRecentKeys:
    """Make what a worker has: `RecentKeys`, or that of a kernel, which does the same."""
    return RecentKeys(window_seconds, limit) if kernel is None else kernel(window_seconds, limit, crc32)
