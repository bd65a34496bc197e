"""Meters in shared memory: what each client uses of the node, counted by all workers together without a lock.

A meter is for one token or one address, known by a keyed hash of it. It holds the time until which the client's
requests are paid for, the same for its bytes, and its open connections by worker.

- **Rates** are a generic cell rate algorithm (ATM Forum TM 4.0, appendix C): one number for each rate, the time at
  which all that was taken will be paid for. A client is refused while that is more than a burst ahead of now.
- **A meter that is paid for and has no connection is as good as none**, so its place may be taken. Nothing has to be
  removed, and no process has to end well.
- **Connections** have a cell for each worker, written by that worker alone. `forget` empties the cells of one that
  died.
- **Places.** A key has WAYS places, beside each other from where its hash points. Without a free one among them the
  client is not tracked here, and the caller limits it by itself.

Races. Nobody locks, so two workers that change the same number within the same instruction may lose what one of them
took. A worker that is stopped between reading and writing gives back what the others took meanwhile: at most what the
limit allows in that time. Two workers that take the same place see it at their next look, as the hash is another, and
look again. Callers take several requests at a time, which makes all of that rare; `benchmarks/meters.py` measures it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from typing import Final

WAYS: Final = 16
"""Places that a key may have."""

REQUESTS: Final = 0
BYTES: Final = 1
"""The two rates of a meter."""

NS: Final = 1_000_000_000
"""Times here are nanoseconds of CLOCK_MONOTONIC, which all processes share."""


class Meters:
    """The mapping. Make it before forking. One slot of the table is one meter; workers are numbered from 1."""

    def __init__(self, workers: int, slots: int) -> None:
        self._workers = workers
        self._slots = max(slots, WAYS)
        # The clients choose tokens and addresses, and shall not choose whose place they take.
        self._key = os.urandom(16)
        cells = (self._slots * workers + 1) // 2
        # The kernel gives memory to what is touched.
        self._memory = mmap.mmap(-1, (3 * self._slots + cells) * 8)
        words = memoryview(self._memory).cast("Q")
        self._hashes = words[: self._slots]
        # By rate, and in it by slot.
        self.paid_until = (words[self._slots : 2 * self._slots], words[2 * self._slots : 3 * self._slots])
        self._cells = memoryview(self._memory)[3 * self._slots * 8 :].cast("I")

    def hash_of(self, key: bytes) -> int:
        """What a key is known by here; never 0."""
        return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=self._key).digest(), "big") or 1

    def place(self, hashed: int, now: int) -> int | None:
        """The slot of a key: where it is, else a free one, which is its own from now on; None if there is none."""
        start = hashed % (self._slots - WAYS + 1)
        found: list[int] = self._hashes[start : start + WAYS].tolist()
        try:
            return start + found.index(hashed)
        except ValueError:
            pass
        if 0 in found:
            free: int | None = start + found.index(0)
        else:
            free = next((slot for slot in range(start, start + WAYS) if self._is_idle(slot, now)), None)
        if free is not None:
            self.paid_until[REQUESTS][free] = self.paid_until[BYTES][free] = 0
            self._hashes[free] = hashed
        return free

    def is_at(self, slot: int, hashed: int) -> bool:
        """Whether a slot is still that key's."""
        return bool(self._hashes[slot] == hashed)

    def connections(self, slot: int) -> int:
        """Of all workers."""
        return sum(self._cells[slot * self._workers : (slot + 1) * self._workers])

    def count_connection(self, worker: int, slot: int, change: int) -> None:
        """Only the worker itself."""
        self._cells[slot * self._workers + worker - 1] += change

    def forget(self, worker: int) -> None:
        """A worker is dead, and its connections with it."""
        self._cells[worker - 1 : self._slots * self._workers : self._workers] = memoryview(
            array("I", bytes(4 * self._slots))
        )

    def used(self) -> int:
        """Slots that were ever taken; for tests and figures."""
        return self._slots - self._hashes.tolist().count(0)

    def _is_idle(self, slot: int, now: int) -> bool:
        paid_until = self.paid_until
        return paid_until[REQUESTS][slot] <= now and paid_until[BYTES][slot] <= now and not self.connections(slot)
