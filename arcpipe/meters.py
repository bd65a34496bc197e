"""Meters in shared memory: each client's requests, bytes and connections, counted by all workers without a lock.

A meter is for one token or one address, known by a keyed hash. It holds the time until which the client's requests are
paid for, the same for its bytes, and its open connections by worker.

- **Rates** use the generic cell rate algorithm (ATM Forum TM 4.0, appendix C). Each rate is one number: the time at
  which all requests so far are paid for. A client is refused while that time is more than a burst ahead of now.
- **Idle meters.** A meter that is paid for and has no connection carries no information, so another client may take its
  place. Nothing has to be removed, and no process has to end cleanly.
- **Connections** have a cell for each worker, written by that worker alone. `forget` clears the cells of a dead worker.
- **Places.** A key has WAYS adjacent places, from the one that its hash points to. If none of them is free, the client
  is not tracked here, and each worker limits it by itself.

Races. There is no lock. If two workers change the same number at the same instant, one change may be lost. A worker
that is stopped between reading and writing undoes the changes that others made meanwhile: at most the limit for that
time. If two workers take the same place, one sees a foreign hash at its next look, and looks for another place. Callers
count several requests at a time, which makes all of this rare; `benchmarks/micro/meters.py` measures it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from typing import Final

WAYS: Final = 16
"""Places for a key."""

REQUESTS: Final = 0
BYTES: Final = 1
"""The two rates of a meter."""

NS: Final = 1_000_000_000
"""Nanoseconds in a second. Times here are nanoseconds of CLOCK_MONOTONIC, which all processes share."""


class Meters:
    """The mapping. Make it before forking. One slot of the table is one meter; workers are numbered from 1."""

    def __init__(self, workers: int, slots: int) -> None:
        self._workers = workers
        self._slots = max(slots, WAYS)
        # Clients choose tokens and addresses; a keyed hash keeps them from choosing whose place they take.
        self._key = os.urandom(16)
        cells = (self._slots * workers + 1) // 2
        # The kernel allocates only pages that are touched.
        self._memory = mmap.mmap(-1, (3 * self._slots + cells) * 8)
        words = memoryview(self._memory).cast("Q")
        self._hashes = words[: self._slots]
        # In ns: by rate, then by slot.
        self.paid_until = (words[self._slots : 2 * self._slots], words[2 * self._slots : 3 * self._slots])
        self._cells = memoryview(self._memory)[3 * self._slots * 8 :].cast("I")

    def hash_of(self, key: bytes) -> int:
        """Return the hash that stands for a key; it is never 0."""
        return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=self._key).digest(), "big") or 1

    def place(self, hashed: int, now: int) -> int | None:
        """Return the slot of a key, or give it a free one; None if there is none.

        Args:
            hashed: the hash of the key.
            now: present time in ns.
        """
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
        """Tell whether a slot still belongs to a key."""
        return bool(self._hashes[slot] == hashed)

    def connections(self, slot: int) -> int:
        """Return the open connections of a slot, over all workers."""
        return sum(self._cells[slot * self._workers : (slot + 1) * self._workers])

    def count_connection(self, worker: int, slot: int, change: int) -> None:
        """Add `change` to the connections of a slot at a worker. Only that worker may call it."""
        self._cells[slot * self._workers + worker - 1] += change

    def forget(self, worker: int) -> None:
        """Clear the connections of a worker that died."""
        self._cells[worker - 1 : self._slots * self._workers : self._workers] = memoryview(
            array("I", bytes(4 * self._slots))
        )

    def used(self) -> int:
        """Return the number of slots that were ever taken; for tests and benchmarks."""
        return self._slots - self._hashes.tolist().count(0)

    def _is_idle(self, slot: int, now: int) -> bool:
        paid_until = self.paid_until
        return paid_until[REQUESTS][slot] <= now and paid_until[BYTES][slot] <= now and not self.connections(slot)
