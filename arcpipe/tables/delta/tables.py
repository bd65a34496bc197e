"""Delta tables in the store of the files: the form of `TableFormat`.

Each table has a log of its own (`log`), so no catalogue is needed, and a commit is one conditional put. The state of
each table is remembered from one commit to the next, and proven by two small reads, so that a commit costs the same
at the first and at the ten thousandth version.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import uvloop

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.errors import NotOffered, StorageError
from arcpipe.storage import LakeStore, MemoryBlob, open_store
from arcpipe.storage.local import LocalStore
from arcpipe.tables.base import (
    AT_ONCE,
    Column,
    Committed,
    Conflict,
    Dropped,
    Maintained,
    NewFile,
    Refused,
    TableError,
    TableName,
    Unavailable,
    UnreadableTables,
)
from arcpipe.tables.delta import actions
from arcpipe.tables.delta.actions import DATABASE, MEASUREMENT, Operation
from arcpipe.tables.delta.checkpoints import INTERVAL, make_checkpoint
from arcpipe.tables.delta.columns import columns_of
from arcpipe.tables.delta.files import files_of
from arcpipe.tables.delta.log import Log
from arcpipe.tables.delta.maintain import Memory, Upkeep
from arcpipe.tables.delta.paths import LOG, commit_key, key_of, root_of, table_of
from arcpipe.tables.delta.state import State, require_usable, vacuum_seconds
from arcpipe.tables.schema import shown

T = TypeVar("T")

log = logging.getLogger(__name__)

# Tables whose state is remembered, some 10 KB each. A forgotten one is loaded anew.
_MAX_STATES: Final = 20_000
# Seconds for which a commit trusts that a state is the latest one: the time from `committed` to `commit`.
_MOMENT_SECONDS: Final = 10.0
# Seconds from the read of a state to the end of a commit on it. Later ones look whether others have cleaned the log
# meanwhile: then the name of the next version is free again, and a commit by that name is in no state of the table.
_LATE_SECONDS: Final = 60.0
_PROBE: Final = ".arcpipe-commit-check"


class DeltaTables:
    """A TableFormat. Unlike others it may be called by several threads at once, for different tables."""

    def __init__(
        self, tables: Tables, storage: Storage, *, store: LakeStore | None = None, upkeep_seconds: float = 3_600.0
    ) -> None:
        """Open the tables; does no I/O.

        Args:
            store: what the settings of `storage` lead to; opened from them by default.
            upkeep_seconds: the time from one look for what is too old to the next, of the same table. A look lists the
                whole log.
        """
        self._storage = storage
        self._store: LakeStore = open_store(storage.url, storage.s3) if store is None else store
        self._history_hours = tables.history_hours
        self._states: OrderedDict[str, State] = OrderedDict()  # by folder
        self._seen: dict[str, float] = {}  # when it was loaded, by the monotonic clock, until the next commit
        self._upkeep = Memory()
        self._upkeep_seconds = upkeep_seconds
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return "delta"

    @property
    def at_once(self) -> int:
        return AT_ONCE if self._store.url.startswith("s3://") else 1

    def check(self) -> None:
        self._run("", self._check())

    def close(self) -> None:
        with self._lock:
            loop, self._loop, thread, self._thread = self._loop, None, self._thread, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._store.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def committed(self, table: TableName, node: str) -> int | None:
        return self._run(shown(table), self._committed(table, node))

    def left_behind(self, table: TableName, node: str) -> int | None:
        return None  # the table is its log, and has no catalogue

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        done, state = self._run(shown(table), self._commit(table, files, node, seq))
        if done.files and state.version and state.version % INTERVAL == 0:
            make_checkpoint(self._storage, root_of(table))
        return done

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        return self._run("the tables", self._all_tables(unreadable))

    def columns(self, table: TableName) -> list[Column]:
        state = self._run(shown(table), self._fresh(table))
        return [] if state is None else columns_of(state.fields)

    def files(self, table: TableName) -> Iterator[str]:
        root = root_of(table)
        for path in self._run(shown(table), self._paths(table)):
            yield key_of(root, path, self._store.url)

    def former(self, table: TableName) -> set[str]:
        return self._run(shown(table), self._former(table))

    def markers(self, table: TableName) -> dict[str, int]:
        state = self._run(shown(table), self._fresh(table))
        return {} if state is None else state.node_markers()

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        self._run(shown(table), self._replace(table, old, new))

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        self._run(shown(table), self._remove(table, keys))

    def maintain(self, table: TableName) -> Maintained:
        return self._run(shown(table), self._maintain(table))

    # The event loop

    def _run(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the event loop of the store, and turn its errors into those of tables."""
        with self._lock:
            if self._loop is None:
                self._loop = uvloop.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="delta tables", daemon=True)
                self._thread.start()
            loop = self._loop
        with _errors_of_tables(what):
            return asyncio.run_coroutine_threadsafe(work, loop).result()

    # Steps

    async def _check(self) -> None:
        url = self._store.url
        if "%" in url:
            raise Refused(
                f"storage.url: {url} has a percent sign, and most readers find no Delta table below such a folder. "
                "Rename the folder"
            )
        probe = f"{_PROBE}-{secrets.token_hex(8)}"
        try:
            if not await self._store.put_new(probe, MemoryBlob(b"arcpipe")):
                raise Unavailable(f"{url}/{probe} was to be new, and is there already")
            if await self._store.put_new(probe, MemoryBlob(b"arcpipe")):
                raise Refused(
                    f"{url} overwrites an object that is there although the request forbids it (If-None-Match). "
                    "Two writers would destroy each other's commits: use a store with conditional writes for Delta"
                )
        finally:
            await self._store.delete(probe)

    async def _committed(self, table: TableName, node: str) -> int | None:
        """Return the node's marker, durably: commit files are removed by it."""
        known = self._states.get(root_of(table))
        state = await self._fresh(table)
        if state is None:
            return None
        if isinstance(self._store, LocalStore) and (known is None or known.version != state.version):
            # Who made this version may have died before its name was synced, which a look at it does.
            await self._store.exists(commit_key(root_of(table), state.version))
        return state.marker(node)

    async def _fresh(self, table: TableName) -> State | None:
        """Return the latest state of a table, which arcpipe can write to; None if there is none."""
        root = root_of(table)
        known = self._states.get(root)
        delta_log = Log(self._store, root)
        state = await delta_log.fresh(known)
        if state is None:
            self._states.pop(root, None)
            return None
        if known is None or state.protocol is not known.protocol or state.metadata is not known.metadata:
            require_usable(state, delta_log.place)
            if (seconds := vacuum_seconds(state)) is not None:
                log.warning(
                    "VACUUM of %s deletes files that wait for their commit for more than %.1f hours: "
                    "set its property delta.deletedFileRetentionDuration to 'interval 7 days'",
                    *(delta_log.place, seconds / 3600),
                )
        self._remember(root, state)
        self._seen[root] = time.monotonic()
        return state

    async def _just_seen(self, table: TableName) -> State | None:
        """Return the latest state if it was loaded a moment ago, and the table was not dropped since.

        Whether somebody committed since then is told by the commit itself, which fails then.
        """
        root = root_of(table)
        state, seen = self._states.get(root), self._seen.pop(root, None)
        if state is None or seen is None or time.monotonic() - seen > _MOMENT_SECONDS:
            return None
        return state if state.digest and await Log(self._store, root).is_there(state) else None

    def _remember(self, root: str, state: State) -> None:
        self._states[root] = state
        self._states.move_to_end(root)
        if len(self._states) > _MAX_STATES:
            self._seen.pop(self._states.popitem(last=False)[0], None)

    async def _existing(self, table: TableName) -> State:
        state = await self._fresh(table)
        if state is None:
            raise Dropped(f"there is no Delta table {Log(self._store, root_of(table)).place}")
        return state

    async def _commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> tuple[Committed, State]:
        began = _now()
        state = await self._just_seen(table) or await self._fresh(table)
        marker = None if state is None else state.marker(node)
        if state is not None and marker is not None and marker >= seq:
            return Committed(marker, state.version, 0), state
        lines = [actions.marker(node, seq), *actions.additions(table, state, files, self._history_hours)]
        after = await self._attempt(table, state, lines, "WRITE", began)
        return Committed(seq, after.version, len(files), created=state is None), after

    async def _replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        began = _now()
        state = await self._existing(table)
        removed = await self._removes(table, state, old, data_change=False)
        if len(removed) < len(set(old)):
            raise Conflict(f"{shown(table)}: {len(set(old)) - len(removed)} of the files to be replaced are gone")
        lines = actions.additions(table, state, new, self._history_hours, data_change=False)
        await self._attempt(table, state, lines + removed, "OPTIMIZE", began)

    async def _remove(self, table: TableName, keys: Sequence[str]) -> None:
        began = _now()
        state = await self._existing(table)
        if state.configuration.get("delta.appendOnly", "false").lower() == "true":
            raise Refused(
                f"{shown(table)} takes no file out, as its property delta.appendOnly says. "
                "Unset it, or end the retention of this database"
            )
        if removed := await self._removes(table, state, keys, data_change=True):
            await self._attempt(table, state, removed, "DELETE", began)

    async def _attempt(
        self, table: TableName, state: State | None, lines: list[bytes], operation: Operation, began: float
    ) -> State:
        """Make the commit. Its outcome is known only if this returns, or raises Conflict.

        Args:
            began: a time before the state was read.
        """
        root = root_of(table)
        self._seen.pop(root, None)
        delta_log = Log(self._store, root)
        after = await delta_log.commit(state, [actions.commit_info(operation, state), *lines])
        if after is None:
            raise Conflict(f"{shown(table)}: somebody else made its next version first")
        if _now() - began > _LATE_SECONDS and not await delta_log.ends_at(after.version):
            self._states.pop(root, None)
            raise Unavailable(
                f"{shown(table)}: version {after.version} was made {_now() - began:.0f} s after the one before was "
                "read, and the log goes on: the table is read anew, to see whether it has that version"
            )
        self._remember(root, after)
        return after

    async def _removes(self, table: TableName, state: State, keys: Sequence[str], *, data_change: bool) -> list[bytes]:
        """Return the actions that take files out: of those of these keys that the table has."""
        root, wanted = root_of(table), set(keys)
        found = await files_of(Log(self._store, root), state)
        return [
            actions.removal(path, size, data_change=data_change)
            for path, size in found.sizes.items()
            if key_of(root, path, self._store.url) in wanted
        ]

    async def _paths(self, table: TableName) -> list[str]:
        state = await self._existing(table)
        return list((await files_of(Log(self._store, root_of(table)), state)).sizes)

    async def _former(self, table: TableName) -> set[str]:
        state = await self._fresh(table)
        if state is None:
            return set()
        root, url = root_of(table), self._store.url
        found = await files_of(Log(self._store, root), state, with_removed=True)
        held = {key_of(root, path, url) for path in found.sizes}
        return {key_of(root, path, url) for path in found.removed} - held

    async def _maintain(self, table: TableName) -> Maintained:
        state = await self._existing(table)
        root = root_of(table)
        if not _is_ours(state):
            raise Dropped(f"{Log(self._store, root).place} is a Delta table of somebody else")
        upkeep = Upkeep(self._store, Log(self._store, root), state, self._upkeep, every_seconds=self._upkeep_seconds)
        return await upkeep.run(lambda: make_checkpoint(self._storage, root))

    async def _all_tables(self, unreadable: UnreadableTables | None) -> list[TableName]:
        found: list[TableName] = []
        for database in await self._store.list_folders(""):
            if database[0] in "._":
                continue
            for measurement in await self._store.list_folders(f"{database}/"):
                root = f"{database}/{measurement}"
                if LOG not in await self._store.list_folders(f"{root}/"):
                    continue
                names = table_of(root)
                if names is not None and root_of(names) != root:
                    names = None
                try:
                    with _errors_of_tables(root):
                        state = await Log(self._store, root).fresh(self._states.get(root))
                except TableError as error:
                    if unreadable is None:
                        raise
                    unreadable[names or ("", root)] = error
                    continue
                if state is not None and _is_ours(state) and (names := names or _names_in(state, root)) is not None:
                    found.append(names)
        return sorted(found)


def _is_ours(state: State) -> bool:
    """Tell whether arcpipe made the table, or has appended to it."""
    return MEASUREMENT in state.configuration or bool(state.node_markers())


def _names_in(state: State, root: str) -> TableName | None:
    """Return the names that the metadata of a table tells; None if it is of another folder."""
    names = state.configuration.get(DATABASE), state.configuration.get(MEASUREMENT)
    if names[0] is None or names[1] is None:
        return None
    return (names[0], names[1]) if root_of((names[0], names[1])) == root else None


def _now() -> float:
    """Return the time, in seconds, of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def _errors_of_tables(what: str) -> Iterator[None]:
    """Turn errors of the store into those of tables."""
    try:
        yield
    except NotOffered as error:
        raise Refused(f"{error}: Delta tables need them, use another store") from error
    except StorageError as error:
        text = f"{what}: {error}" if what else str(error)
        if error.kind in ("credentials", "missing_bucket"):
            raise Refused(text) from error
        raise Unavailable(text) from error
