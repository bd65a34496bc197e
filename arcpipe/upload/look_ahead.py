"""Look ahead: while the last objects of a batch are put, the next one is planned and converted.

The registry of columns is a function of the batches in their order. So the next batch is converted with the changes of
the one before, which are durable in that one's journal by then. It is marked as uploaded only after that one. A crash
finishes both in their order, with the same objects.

It is one try, and nothing depends on it. If it fails, or the batch before does, the batch is tried again in its turn.
The batch before alone may use the spare files: on a full disk its end is what makes space.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, NamedTuple

from arcpipe.upload.batch import Batch
from arcpipe.upload.puts import Abandoned
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.shipment import Shipment

_POLL_SECONDS: Final = 0.1  # between two looks for a batch that is due


class Ahead(NamedTuple):
    """A batch that was planned ahead of its turn, and its conversion, if that succeeded."""

    batch: Batch
    shipment: Shipment | None


class LookAhead:
    """At most one batch ahead of its turn. For the event loop."""

    def __init__(
        self,
        plan: Callable[[], Batch | None],
        ship: Callable[[Batch, SchemaRegistry], Shipment],
        note: Callable[[str, Exception], object],
    ) -> None:
        """Begin with nothing.

        Args:
            plan: plans the next batch without the spare files; None if none is due.
            ship: begins a try of a batch with a registry of its own.
            note: counts and logs a failure of a step.
        """
        self._note = note
        self._plan = plan
        self._ship = ship
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._batch: Batch | None = None
        self._shipment: Shipment | None = None
        self._is_converted = False

    @property
    def is_begun(self) -> bool:
        """Whether a batch may be ahead of its turn."""
        return self._task is not None

    def begin(
        self, registry: SchemaRegistry, before: Shipment, teach: Callable[[SchemaRegistry], None] = lambda _: None
    ) -> None:
        """Look for the next batch until `take` or `give_up` is called.

        Args:
            registry: that of the batches before `before`.
            before: a batch whose conversion is done.
            teach: changes a registry as the end of `before` will.
        """
        assert self._task is None, "BUG: two batches ahead of their turn"
        following = registry.copy()
        following.apply(before.schema, before.used or before.drafted)
        teach(following)
        self._over = asyncio.Event()
        self._batch = self._shipment = None
        self._is_converted = False
        self._task = asyncio.get_running_loop().create_task(self._work(following))

    async def take(self) -> Ahead | None:
        """End the look, and return the batch with its conversion, once the one before is uploaded."""
        if self._task is None:
            return None
        self._over.set()
        if self._batch is not None:  # its journal may wait for them
            self._batch.journal.may_use_spares = True
        await asyncio.wait([self._task])
        self._task.result()
        self._task = None
        return None if self._batch is None else Ahead(self._batch, self._shipment if self._is_converted else None)

    async def give_up(self) -> Batch | None:
        """End the look because the batch before failed. Returns the batch, which has to be tried from its beginning."""
        if self._task is None:
            return None
        if self._shipment is not None:
            self._shipment.abandon()
        self._task.cancel()  # its journal may wait for space
        await asyncio.wait([self._task])
        self._task = None
        if self._shipment is not None:
            await self._shipment.close()
        return self._batch

    async def _work(self, registry: SchemaRegistry) -> None:
        try:
            batch = await self._planned()
        except Exception as error:  # the next call plans the same batch
            self._note("planning a batch ahead of its turn", error)
            return
        if batch is None:
            return
        self._batch = batch
        batch.tries += 1
        batch.journal.may_use_spares = self._over.is_set()
        self._shipment = self._ship(batch, registry)
        try:
            await self._shipment.convert()
        except Abandoned:
            pass
        except Exception as error:  # any kind: the try in its turn deals with it
            self._note(f"batch {batch.batch_id}, ahead of its turn", error)
        else:
            self._is_converted = True

    async def _planned(self) -> Batch | None:
        while (batch := self._plan()) is None and not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _POLL_SECONDS)
        return batch
