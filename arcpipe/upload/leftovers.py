"""Objects and uploads in parts that earlier tries of a batch left in the store."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Collection, Iterable
from typing import Final

from arcpipe.errors import StorageError
from arcpipe.units import MB
from arcpipe.upload.batch import Batch
from arcpipe.upload.context import Context

log = logging.getLogger(__name__)

_MULTIPART_BYTES: Final = 5 * MB  # S3's smallest part: a smaller object never was an upload in parts
# Kinds of failures that may last for ever: without tables, the right to list is needed for nothing else.
_LASTING: Final = ("credentials", "other")
_LIST_TRIES: Final = 5  # of a list that fails so


class StoreLeftovers:
    """Find and remove the leftovers of earlier tries of a batch. For the event loop.

    Two tries make the same objects unless something that decides where files are split was changed in between: a
    setting, or the library that encodes them.
    """

    def __init__(self, context: Context, batch: Batch, slots: asyncio.Semaphore) -> None:
        """Take the keys that the batch's journal has by now.

        Args:
            slots: bounds the requests to the store that run at once.
        """
        self._context = context
        self._batch = batch
        self._slots = slots
        self._earlier = dict(batch.journal.keys)

    def strays(self, keys: Collection[str]) -> list[str]:
        """List the keys of earlier tries that are not among `keys`, those of this try."""
        return sorted(self._earlier.keys() - set(keys))

    async def abort_uploads(self) -> None:
        """Abort uploads in parts that an earlier try began. They cost space, and nothing else."""
        store = self._context.store

        async def abort(key: str) -> None:
            async with self._slots:
                try:
                    await store.abort_uploads(key)
                except StorageError as error:
                    log.warning("multipart uploads of %s, if there are any, stay open: %s", key, error)

        large = [record.key for record in self._earlier.values() if record.bytes >= _MULTIPART_BYTES]
        await asyncio.gather(*map(abort, large))

    async def remove(self, keys: Collection[str]) -> None:
        """Remove objects of earlier tries that are not among `keys`, those of this try."""
        await asyncio.gather(*map(self._remove, self.strays(keys)))
        if self._batch.has_unlisted_keys and self._batch.is_left_over:
            folders = sorted({key.rpartition("/")[0] + "/" for key in keys})
            await asyncio.gather(*(self._remove_in(folder, keys) for folder in folders))

    async def _remove(self, key: str) -> None:
        # Each removal is retried by itself: one failure among thousands of keys must not cost the whole batch.
        context = self._context
        async with self._slots:
            log.warning("removing %s, which an earlier try of batch %s left", key, self._batch.batch_id)
            await context.retry.persist(f"removing {key}", functools.partial(context.store.delete, key))

    async def _remove_in(self, folder: str, keys: Iterable[str]) -> None:
        """Remove what a list of the folder shows, of a batch whose journal does not have all keys."""
        context = self._context
        tries = 0

        async def look() -> list[str]:
            nonlocal tries
            tries += 1
            try:
                return await context.store.list_keys(folder)
            except StorageError as error:
                if error.kind not in _LASTING or tries < _LIST_TRIES:
                    raise
                log.warning("objects that an earlier try left in %s, if there are any, stay: %s", folder, error)
                return []

        async with self._slots:
            listed = await context.retry.persist(f"listing {folder}", look)
        own = re.compile(rf"_{re.escape(self._batch.batch_id)}(?:\.\d+)?_")  # with the number of a part, if isolated
        for key in listed:
            if own.search(key) and key not in keys:
                await self._remove(key)
