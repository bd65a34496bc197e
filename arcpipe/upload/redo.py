"""Before a batch is tried again: check that its segments still hold all that an earlier try read.

A try overwrites the objects of the one before. If it found fewer entries, it would take rows out of the store. So
nothing is put again until the segments were read and compared with the journal. If they hold less:

- nothing was put: the batch is planned anew without the missing segments;
- everything was put: the batch is uploaded, and only has to be retired;
- a part was put: the remaining segments get a new batch id. Partitions that are whole in the store are left out.
  Objects of the old id stay as they are. Rows of the other partitions may be in the store under both ids.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from arcpipe import logs
from arcpipe.counters import Uploader
from arcpipe.errors import is_full
from arcpipe.storage import ObjectStore
from arcpipe.upload import segments
from arcpipe.upload.batch import Batch
from arcpipe.upload.batches import Batches
from arcpipe.upload.context import Context
from arcpipe.upload.handover import files_of
from arcpipe.upload.journal import Converted, Uploaded
from arcpipe.upload.leftovers import StoreLeftovers
from arcpipe.upload.threads import in_thread
from arcpipe.wal import findings
from arcpipe.wal.findings import LOST_SEGMENTS, Finding

log = logging.getLogger(__name__)

_LOOK_AT_ONCE: Final = 16  # requests to the store that run at once


class Replaced(Exception):
    """The batch was planned anew. `batch` takes its place; it is None if nothing is left."""

    def __init__(self, batch: Batch | None) -> None:
        super().__init__("the batch was planned anew")
        self.batch = batch


async def prepare(context: Context, batches: Batches, batch: Batch) -> None:
    """Check that a batch may be tried. `batch.state` is "uploaded" afterwards if nothing is left to try.

    Raises:
        Replaced: another batch takes its place.
        UnreadableSegment, StorageError, OSError: the check is not possible now.
    """
    directory, journal = context.directory, batch.journal
    new = batches.replace_again(batch)
    if new is not None:
        raise Replaced(new)
    if batch.manifest.version == 1 and not journal.has_keys:
        await _let_go_of_missing(context, batch)
        return
    if not journal.has_keys:
        gone = segments.missing(directory, batch.segments, journal.segments)
        if gone:
            context.keys.forget(batch.batch_id)
            await _plan_anew(context, batches, batch, gone, [], ())
        return
    found = await in_thread(lambda: segments.examine(directory, batch.segments, journal.segments))
    if not found.missing and not found.short:
        return
    there = await _present(context.store, batch)
    converted = journal.converted
    is_known = converted is not None and journal.is_complete and not journal.damage
    if converted is not None and is_known and there.issuperset(_last_keys(batch, converted)):
        lost = [*found.missing, *found.short]
        log.warning(
            "segments %s of batch %s hold less than they did, but every object of it is in the store",
            ", ".join(lost),
            batch.batch_id,
        )
        await StoreLeftovers(context, batch, context.slots).remove(_last_keys(batch, converted))
        kept = sorted({*converted.archive, *found.short})
        converted_again = msgspec.structs.replace(converted, archive=kept)
        batches.finish(batch, [converted_again, Uploaded()])
        return
    whole = _whole_folders(batch, converted, there) if converted is not None and is_known else []
    await _plan_anew(context, batches, batch, found.missing, found.short, whole)


def _last_keys(batch: Batch, converted: Converted) -> set[str]:
    return batch.journal.keys.keys() - set(converted.strays)


async def _present(store: ObjectStore, batch: Batch) -> set[str]:
    """Look up which of the batch's keys are in the store."""
    slots = asyncio.Semaphore(_LOOK_AT_ONCE)

    async def look(key: str) -> str | None:
        async with slots:
            return key if await store.exists(key) else None

    return {key for key in await asyncio.gather(*map(look, batch.journal.keys)) if key is not None}


def _whole_folders(batch: Batch, converted: Converted, there: set[str]) -> list[str]:
    """List the folders, one per partition, all of whose objects are in the store."""
    keys = _last_keys(batch, converted)
    lacking = {_folder(key) for key in keys - there} | {_folder(key) for key in converted.strays}
    return sorted({_folder(key) for key in keys} - lacking)


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


async def _plan_anew(
    context: Context, batches: Batches, batch: Batch, gone: list[str], short: list[str], whole: Iterable[str]
) -> None:
    for name in gone:
        log.error(
            "segment %s of batch %s is gone: what was in it and not in the store yet is lost",
            *(name, batch.batch_id),
            extra=logs.EACH,
        )
    await _note_lost(context, gone, f"it is gone, and was a part of batch {batch.batch_id}")
    await _note_lost(context, short, f"it holds less than when batch {batch.batch_id} was begun")
    left = [name for name in batch.segments if name not in gone]
    whole = list(whole)
    await _hand_over(batches, batch, whole)
    new = batches.replace(batch, left, whole)
    context.block[Uploader.LOST_SEGMENTS] += len(gone) + len(short)
    if batch.journal.has_keys:
        log.error(
            "batch %s goes on as %s: %d segments of it hold less than they did. Objects of the old name stay; "
            "rows of partitions that were not whole may be in both",
            *(batch.batch_id, new.batch_id if new is not None else "nothing", len(gone) + len(short)),
            extra=logs.EACH,
        )
    raise Replaced(new)


async def _hand_over(batches: Batches, batch: Batch, whole: list[str]) -> None:
    """Make the partitions that are whole a part of tables: the new batch leaves them out."""
    handover, converted = batches.handover, batch.journal.converted
    if handover is None or converted is None or not whole:
        return
    keys = {key for key in _last_keys(batch, converted) if _folder(key) in whole}
    files = files_of(record for key, record in batch.journal.keys.items() if key in keys)
    await in_thread(lambda: handover.hand_over(batch.batch_id, batch.manifest.store, files))


async def _note_lost(context: Context, names: Iterable[str], what: str) -> None:
    """Note segments whose loss nobody may overlook.

    Raises:
        OSError: it must be noted first, unless the disk is full: the end of the batch frees it.
    """
    lost = [Finding(LOST_SEGMENTS, name.partition(".")[0], 1, what) for name in names]
    try:
        await in_thread(lambda: findings.note(context.directory, lost))
    except OSError as error:
        if not is_full(error):
            raise
        log.error("cannot note that %d segments were lost: %s; only the log tells it", len(lost), error)


async def _let_go_of_missing(context: Context, batch: Batch) -> None:
    """Drop the missing segments of a batch of version 1: without a journal, nobody knows what was put."""
    gone = segments.missing(context.directory, batch.segments, {})
    await _note_lost(context, gone, f"it is gone, and was a part of batch {batch.batch_id}")
    for name in gone:
        log.error(
            "segment %s of batch %s is gone: what was in it and not in the store yet is lost",
            *(name, batch.batch_id),
            extra=logs.EACH,
        )
        batch.segments.remove(name)
        context.block[Uploader.LOST_SEGMENTS] += 1


def without(batch: Batch, name: str) -> list[str]:
    """List the segments of a batch without this one."""
    return [segment for segment in batch.segments if os.path.basename(segment) != name]
