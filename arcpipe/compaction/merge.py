"""Follow a plan from its first byte to its end, and finish or undo one that a crash left. The package has the protocol.

Each step is a method of its own or a call of `Plans` or of the store, so that tests can stop a process at each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

from arcpipe.compaction.downloads import Downloads
from arcpipe.compaction.plan import Input, Output, Plan, Plans, hidden_folder
from arcpipe.compaction.resources import give_memory_back
from arcpipe.compaction.rewrite import Rewrite, RewriteBounds, Rewritten
from arcpipe.config.settings import Parquet
from arcpipe.errors import ArcpipeError, MissingObject, StorageError
from arcpipe.lake.checksums import Checksums
from arcpipe.lake.folders import Folder, table_folder
from arcpipe.lake.input_file import Odd
from arcpipe.lake.keys import merged_file_name
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.storage import LakeStore
from arcpipe.tables.base import Refused
from arcpipe.tables.swap import TableSwap

T = TypeVar("T")

log = logging.getLogger(__name__)

_RENAMES_AT_ONCE: Final = 8


class Mismatch(ArcpipeError):
    """What was written is not what was read. Nothing of it became visible."""


class Stuck(ArcpipeError):
    """A plan that can neither be finished nor undone; an operator has to decide. Nothing was deleted."""


class Stopped(Exception):
    """The process is asked to end."""


class Outcome(NamedTuple):
    """What a merge did."""

    plan: Plan
    rows: int
    superseded: int
    seconds: float
    visible_twice_seconds: float  # readers saw inputs and outputs


class Merge:
    """The steps of one plan at a time. For one event loop; the work of the processor is done in a thread."""

    def __init__(
        self,
        plans: Plans,
        store: LakeStore,
        node: str,
        spool: str,
        parquet: Parquet,
        bounds: RewriteBounds,
        tables: TableSwap | None = None,
    ) -> None:
        """Make ready.

        Args:
            tables: where the files are a part of tables: the swap is theirs, and inputs stay for their upkeep.
        """
        self._tables = tables
        self._plans = plans
        self._store = store
        self._hidden = hidden_folder(node)
        self._spool = spool
        self._parquet = parquet
        self._bounds = bounds
        self.is_stopping = False

    async def run(self, plan: Plan, folder: Folder) -> Outcome:
        """Do a merge. The caller has the lock, and no other plan is there.

        Raises:
            Odd: one input stays as it is. Nothing was changed.
            Mismatch, CannotSort, Stopped, StorageError, OSError: before the commit nothing was changed, but the plan
                may be there. After it the plan is there; `resume` finishes it.
        """
        started = time.monotonic()
        self._plans.write(plan)
        try:
            rewritten, outputs = await self._rewrite(plan, folder)
            await self._verify(plan, folder, outputs, rewritten)
            self._stop_if_asked()
            committed = msgspec.structs.replace(plan, state="committed", outputs=outputs)
        except BaseException:
            with contextlib.suppress(StorageError, OSError):  # the next `resume` does it
                await self._undo()
            raise
        self._plans.write(committed)
        seconds = await self._finish(committed)
        rows, superseded = rewritten.checksums.rows, rewritten.superseded
        return Outcome(committed, rows, superseded, time.monotonic() - started, seconds)

    async def resume(self, plan: Plan) -> None:
        """Take a plan that a crash left to its end: undo what was not committed, and finish the rest.

        Raises:
            Stuck: it is of another store, it needs tables that the settings have not, its table is gone, or the store
                has neither its inputs nor its outputs.
        """
        if plan.store != self._store.url:
            raise Stuck(
                f"{self._plans.path} is of the store {plan.store}, and the server uses {self._store.url}: "
                "start once with that store, or remove the file if that store is gone"
            )
        if plan.in_table and plan.state == "committed" and self._tables is None:
            raise Stuck(
                f'{self._plans.path} merges files of tables, and tables.format is "none" now: start once with the '
                "format that it had, or remove the file if these tables are gone"
            )
        log.info("a merge in %s was interrupted when it was %s; going on", plan.folder, plan.state)
        if plan.state == "planned":
            await self._undo()
            return
        if plan.in_table and self._tables is not None and not await self._tables.is_there(table_folder(plan.folder)):
            # An earlier process may have swapped the files: whoever registers the table again needs the outputs.
            raise Stuck(
                f"a merge in {plan.folder} was interrupted, and there is no table any more, which may have had its "
                "inputs or its outputs. Nothing is deleted: register the table again; or if it was dropped for good, "
                f"delete the outputs that {self._plans.path} names, and then that file"
            )
        await self._finish(plan)

    async def clean(self) -> None:
        """Remove the hidden objects that no plan needs: those of late requests. There is no plan."""
        keys = [one.key async for page in self._store.list_objects(self._hidden) for one in page]
        await self._store.delete_all(keys)

    def _stop_if_asked(self) -> None:
        if self.is_stopping:
            raise Stopped

    # Before the commit

    async def _rewrite(self, plan: Plan, folder: Folder) -> tuple[Rewritten, list[Output]]:
        """Write the outputs under hidden names."""
        loop = asyncio.get_running_loop()
        outputs: list[Output] = []

        def take(number: int, spool: Spool, rows: Rows) -> None:
            try:
                asyncio.run_coroutine_threadsafe(self._hide(plan, folder, number, spool, rows, outputs), loop).result()
            finally:
                spool.close()

        rewrite = Rewrite(
            *(plan.merge, plan.dedup, self._parquet, self._spool, self._bounds), pause=self._stop_if_asked
        )
        downloads = Downloads(self._store, loop, self._spool, folder)
        sizes = [one.size for one in plan.inputs]
        return await _in_thread(lambda: rewrite.run(lambda: downloads.open(plan.inputs), sizes, take)), outputs

    async def _hide(
        self, plan: Plan, folder: Folder, number: int, spool: Spool, rows: Rows, outputs: list[Output]
    ) -> None:
        """Put an output under its hidden name."""
        hidden = f"{self._hidden}{plan.merge}_{number}.new"
        name = merged_file_name(folder.measurement, rows.min_us, plan.merge, number)
        await self._store.abort_uploads(hidden)
        await self._store.put(hidden, spool)
        outputs.append(Output(hidden, f"{folder.path}/{name}", spool.size, rows.total))

    async def _verify(self, plan: Plan, folder: Folder, outputs: list[Output], wanted: Rewritten) -> None:
        """Read the outputs back, and compare them with what was read.

        Raises:
            Mismatch: they differ.
        """
        loop = asyncio.get_running_loop()
        downloads = Downloads(self._store, loop, self._spool, folder)
        found = Checksums(list(wanted.checksums.columns))

        def read() -> str:
            give_memory_back()
            try:
                for context in downloads.open([Input(one.hidden, one.size, "") for one in outputs]):
                    with context as file:
                        for table in file.tables():
                            self._stop_if_asked()
                            if not set(table.schema.names) <= found.columns.keys():
                                return "it has other columns"
                            found.add(table)
            except Odd as error:
                return str(error)
            return wanted.checksums.difference(found)

        difference = await _in_thread(read)
        if difference:
            raise Mismatch(
                f"what was written for {plan.folder} is not what was read ({difference}): it is removed, and the "
                "files stay as they are. Is the memory of this machine, or its disk, failing?"
            )

    async def _undo(self) -> None:
        """Remove the hidden outputs, then the plan. Nothing of it was visible."""
        await self.clean()
        self._plans.remove()

    # After the commit

    async def _finish(self, plan: Plan) -> float:
        """Make the outputs visible and delete the inputs. Returns the seconds in which readers saw both."""
        if self._tables is not None and (plan.in_table or await self._is_held(plan, self._tables)):
            await self._finish_in_table(plan, self._tables)
            return 0.0
        started = time.monotonic()
        if not await self._publish(plan):
            await self._start_over(plan)
            return 0.0
        await self._delete_inputs(plan)
        seconds = time.monotonic() - started
        await self.clean()
        self._plans.remove()
        return seconds

    async def _is_held(self, plan: Plan, tables: TableSwap) -> bool:
        """Tell whether a table has files of a merge that was begun without tables: by a command without its settings.

        Raises:
            Stuck: it has some of them.
        """
        inputs = {one.key for one in plan.inputs}
        held = inputs & await tables.held(table_folder(plan.folder))
        if held and held != inputs:
            raise Stuck(
                f"a merge in {plan.folder} was begun without tables, and the table has {len(held)} of its "
                f"{len(inputs)} files. Nothing is deleted: compare the folder with {self._plans.path}, then remove "
                "that file"
            )
        return bool(held)

    async def _finish_in_table(self, plan: Plan, tables: TableSwap) -> None:
        """Make the outputs visible in the store, then a part of the table in place of the inputs, which stay.

        Readers of the table see one or the other, at any time.
        """
        folder = table_folder(plan.folder)
        outputs = [(one.key, one.size) for one in plan.outputs]
        if (await tables.held(folder)).isdisjoint(key for key, _ in outputs):  # else an earlier process did it
            if not await self._publish(plan):
                log.error("outputs of a merge in %s are gone: the table keeps its files", plan.folder)
                await self._give_up(plan, folder, tables)
                return
            try:
                is_done = await tables.replace(folder, [one.key for one in plan.inputs], outputs)
            except Refused:  # until a person changes something: other merges must not wait for that
                if (await tables.held(folder)).isdisjoint(key for key, _ in outputs):
                    await self._give_up(plan, folder, tables)
                raise
            if not is_done:
                log.info("a merge in %s is given up: somebody else changed its files in the table first", plan.folder)
                await self._give_up(plan, folder, tables)
                return
        await self.clean()
        self._plans.remove()

    async def _give_up(self, plan: Plan, folder: str, tables: TableSwap) -> None:
        """Delete the outputs of a merge that no table will have: `arcpipe tables import` would double their rows.

        Those that it had stay for the readers of its earlier states: an earlier process swapped the files, and somebody
        else took the outputs out of the table since.
        """
        former = await tables.former(folder)
        await self._store.delete_all([one.key for one in plan.outputs if one.key not in former])
        await self._undo()

    async def _publish(self, plan: Plan) -> bool:
        """Rename the outputs, and look that all are there. False if one of them is nowhere."""
        visible = await self._sizes(plan.folder + "/")
        left = [one for one in plan.outputs if visible.get(one.key) != one.size]
        if left:
            hidden = await self._sizes(self._hidden)
            if any(hidden.get(one.hidden) != one.size for one in left):
                return False
        slots = asyncio.Semaphore(_RENAMES_AT_ONCE)

        async def rename(one: Output) -> None:
            async with slots:
                with contextlib.suppress(MissingObject):  # an earlier request did it, or the look below fails
                    await self._store.move(one.hidden, one.key)

        for outcome in await asyncio.gather(*map(rename, left), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        for one in plan.outputs:
            if one not in left:  # who moved it may have died before that was durable, which a look makes it
                await self._store.exists(one.key)
        visible = await self._sizes(plan.folder + "/")
        return all(visible.get(one.key) == one.size for one in plan.outputs)

    async def _start_over(self, plan: Plan) -> None:
        """Undo a committed plan of which an output is nowhere, because somebody else deleted it.

        A list may be behind, so each object is looked for before anything is deleted.

        Raises:
            Stuck: some inputs are missing, too.
            StorageError: an output is there, and the list does not show it.
        """
        visible = await self._sizes(plan.folder + "/")
        for one in plan.outputs:
            if one.key not in visible and await self._store.exists(one.key):
                raise StorageError(
                    f"{one.key} is there, and the list of its folder does not show it: nothing is deleted, and it is "
                    "tried again"
                )
        lost = [
            one.key for one in plan.inputs if visible.get(one.key) != one.size or not await self._store.exists(one.key)
        ]
        if len(lost) == len(plan.inputs):
            log.warning("a merge in %s was over, and files of it were deleted since: its plan is removed", plan.folder)
            await self._undo()
            return
        if lost:
            raise Stuck(
                f"a merge in {plan.folder} can neither be finished nor undone: outputs are missing, and so are "
                f"{len(lost)} inputs, such as {lost[0]}. Somebody else deleted them. Nothing more is deleted; "
                f"compare the folder with {self._plans.path}, then remove that file"
            )
        log.error("outputs of a merge in %s are gone: its inputs are all there, and it starts over", plan.folder)
        await self._store.delete_all([one.key for one in plan.outputs])
        await self._undo()

    async def _delete_inputs(self, plan: Plan) -> None:
        await self._store.delete_all([one.key for one in plan.inputs])

    async def _sizes(self, prefix: str) -> dict[str, int]:
        return {one.key: one.size async for page in self._store.list_objects(prefix) for one in page}


async def _in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread, which needs this loop. Returns only when the thread is done, even if cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
