"""The log of a table in the store: which commits and checkpoints are there, and the next commit.

    log = Log(store, root)
    state = await log.fresh(state)                # None: there is no table
    state = await log.commit(state, lines)        # None: somebody else committed first

A table's log is `_delta_log/{version}.json`, one file for each commit, without gaps, and a checkpoint now and then:
what all commits up to it come to, as Parquet. **A commit is one conditional put** of the next version's file. It
succeeds only while there is no such file, so it is made on exactly the state that was read, by one of several writers.

**Fresh** takes two small reads: that of the commit which the state is of, and that of the next one. If the first has
other bytes, or is gone, the table was dropped, made again, or its log was cleaned: then the state is loaded anew.

deltalake is not asked, because it syncs nothing to a local disk: after a power cut a commit might be gone that the
committer was told of. And its handles read the names of all files, however many, at each load.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from arcpipe.errors import MissingObject
from arcpipe.storage import LakeStore, Listed, MemoryBlob
from arcpipe.tables.base import Refused
from arcpipe.tables.delta.checkpoint import CheckpointFile, DamagedCheckpoint, read_state
from arcpipe.tables.delta.paths import LAST_CHECKPOINT, LOG, commit_key
from arcpipe.tables.delta.state import EMPTY, State, digest_of
from arcpipe.units import GB

# Bytes of a commit at most: one of a hundred thousand files has some 50 MB.
_MAX_COMMIT: Final = 1 * GB
# Commits that are read at the same time.
_AT_ONCE: Final = 16
# Commits of others that are read one by one, before the table is loaded anew.
_STEPS: Final = 8
_COMMIT: Final = re.compile(r"(\d{20})\.json")
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet")
_OF_VERSION: Final = re.compile(r"(\d{20})\.")


@dataclass
class Listing:
    """The files of a log, by version."""

    commits: dict[int, Listed] = field(default_factory=dict)
    checkpoints: dict[int, list[Listed]] = field(default_factory=dict)  # whole ones: all parts are there
    others: list[tuple[int, Listed]] = field(default_factory=list)  # what else is of a version, such as checksums

    @property
    def latest(self) -> int:
        """The latest version; -1 if there is none."""
        return max((*self.commits, *self.checkpoints), default=-1)


class Log:
    """The log of one table. Raises StorageError where the store fails."""

    def __init__(self, store: LakeStore, root: str) -> None:
        self._store = store
        self.root = root

    @property
    def place(self) -> str:
        """The table, for the text of an error."""
        return f"{self._store.url}/{self.root}"

    async def fresh(self, known: State | None) -> State | None:
        """Return the latest state; None if there is no table.

        Args:
            known: the state as it was earlier, which makes this cheap.

        Raises:
            Refused: the log is damaged.
        """
        if known is None or not known.digest:
            return await self._load()
        before, own, following = await asyncio.gather(*(self._read(known.version + step) for step in (-1, 0, 1)))
        if own is None or digest_of(own) != known.digest:
            return await self._load()
        if before is None and known.version > 0:
            # A checkpoint is before it, and the rest was cleaned up. Or somebody dropped the table within our last
            # commit, which is in a log without a beginning now.
            return await self._load()
        state = known
        while following is not None:
            if state.version - known.version == _STEPS:
                return await self._load()  # from a checkpoint, and many commits at once
            state = self._after(state, state.version + 1, following)
            following = await self._read(state.version + 1)
        return state

    async def is_there(self, known: State) -> bool:
        """Tell whether the log still has the commit that made this state. Later ones are not looked for."""
        own = await self._read(known.version)
        return own is not None and digest_of(own) == known.digest

    async def ends_at(self, version: int) -> bool:
        """Tell whether a version is the last one, and no checkpoint has it. So nobody knew it when it was made."""
        found = await self.listing(version)
        return found.latest == version and not found.checkpoints

    async def commit(self, state: State | None, lines: Sequence[bytes]) -> State | None:
        """Make the next version, in one attempt.

        Args:
            state: as `fresh` returned it; None makes the table.
            lines: one action each.

        Returns:
            The state after it; None if somebody else made this version, so that nothing happened.
        """
        before = EMPTY if state is None else state
        data = b"\n".join(lines)
        after = self._after(before, before.version + 1, data)
        return after if await self._store.put_new(commit_key(self.root, after.version), MemoryBlob(data)) else None

    async def listing(self, first: int = 0) -> Listing:
        """List the log, from the files of a version on."""
        found = Listing()
        parts: dict[tuple[int, int], list[Listed]] = {}
        folder = f"{self.root}/{LOG}/"
        async for page in self._store.list_objects(folder, after=f"{folder}{first:020}" if first > 0 else ""):
            for one in page:
                name = one.key[len(folder) :]
                if match := _COMMIT.fullmatch(name):
                    found.commits[int(match[1])] = one
                elif match := _CHECKPOINT.fullmatch(name):
                    parts.setdefault((int(match[1]), int(match[3] or 1)), []).append(one)
                elif match := _OF_VERSION.match(name):
                    found.others.append((int(match[1]), one))
        for (version, count), files in parts.items():
            if len(files) == count:
                found.checkpoints[version] = sorted(files)
            else:
                found.others += [(version, one) for one in files]
        return found

    async def last_checkpoint(self) -> int | None:
        """Return the version that `_last_checkpoint` names; None if there is no such file, or it cannot be used."""
        try:
            hint = await self._store.read(f"{self.root}/{LOG}/{LAST_CHECKPOINT}", 0, _MAX_COMMIT)
        except MissingObject:
            return None
        try:
            version = orjson.loads(hint)["version"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None  # a power cut may have left half of it, and it is a hint only
        return version if isinstance(version, int) and version >= 0 else None

    async def since(self, listing: Listing, first: int, last: int) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the commits of these versions, both included, in order.

        Raises:
            Refused: one is missing.
        """
        wanted = range(first, last + 1)
        if missing := [version for version in wanted if version not in listing.commits]:
            raise self.refused(f"its log has no version {missing[0]}, but a later one, {last}")
        for start in range(first, last + 1, _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, last + 1))
            for version, commit in zip(some, await asyncio.gather(*map(self._read, some)), strict=True):
                if commit is None:
                    raise self.refused(f"version {version} vanished from its log while it was read")
                yield version, commit

    async def checkpoints(self, listing: Listing) -> AsyncIterator[tuple[int, list[CheckpointFile]]]:
        """Yield the checkpoints, the latest one first."""
        for version in sorted(listing.checkpoints, reverse=True):
            files = listing.checkpoints[version]
            yield version, [CheckpointFile(self._store, one.key, one.size) for one in files]

    def refused(self, reason: str) -> Refused:
        return Refused(
            f"the Delta table {self.place} is damaged: {reason}. "
            f"Restore what is missing, or remove {LOG} and import the files again"
        )

    async def _load(self) -> State | None:
        """Load the state from the latest checkpoint and the commits after it."""
        hint = await self.last_checkpoint()
        listing = await self.listing(hint or 0)
        if hint is not None and hint not in listing.checkpoints:
            listing = await self.listing()  # the hint is older than the log, or its checkpoint is not whole
        if listing.latest < 0:
            return None
        state, damage = await self._at_checkpoint(listing)
        if damage is not None and hint:  # an earlier checkpoint may do
            listing = await self.listing()
            state, damage = await self._at_checkpoint(listing)
        if state is EMPTY and 0 not in listing.commits:
            raise self.refused(f"its log has no version 0 and no checkpoint that can be read{_because(damage)}")
        if state.version == listing.latest and state.version in listing.commits:
            own = await self._read(state.version)
            state = State(
                state.version, b"" if own is None else digest_of(own), state.protocol, state.metadata, state.markers
            )
        async for version, commit in self.since(listing, state.version + 1, listing.latest):
            state = self._after(state, version, commit)
        if not state.protocol or not state.metadata:
            raise self.refused("its log has no protocol or no metadata")
        return state

    async def _at_checkpoint(self, listing: Listing) -> tuple[State, DamagedCheckpoint | None]:
        """Return the state at the latest checkpoint that can be read, and why a later one cannot."""
        damage: DamagedCheckpoint | None = None
        async for version, files in self.checkpoints(listing):
            try:
                return State(version, b"", *await read_state(files)), damage
            except DamagedCheckpoint as error:
                damage = error
        return EMPTY, damage

    def _after(self, state: State, version: int, commit: bytes) -> State:
        try:
            return state.after(version, commit)
        except (ValueError, KeyError, TypeError) as error:
            raise self.refused(f"{commit_key(self.root, version)} cannot be read: {error}") from error

    async def _read(self, version: int) -> bytes | None:
        """Return the bytes of a commit; None if there is none."""
        if version < 0:
            return None
        try:
            return await self._store.read(commit_key(self.root, version), 0, _MAX_COMMIT)
        except MissingObject:
            return None


def _because(damage: DamagedCheckpoint | None) -> str:
    return "" if damage is None else f" ({damage})"
