"""The files of a table at one version, and those that it had: what replaces, removes and cleans up needs."""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.tables.delta.checkpoint import DamagedCheckpoint, Removed, read_paths, read_removed
from arcpipe.tables.delta.log import Listing, Log
from arcpipe.tables.delta.state import State, actions_of

_NO_FILES = (b'{"commitInfo":', b'{"txn":', b'{"metaData":', b'{"protocol":')


class Files(NamedTuple):
    """The files that a version has, and those that it remembers to have had, by their paths in the log."""

    sizes: dict[str, int]  # bytes
    removed: dict[str, Removed]


async def files_of(log: Log, state: State, *, with_removed: bool = False) -> Files:
    """Read the files of a table at the version of a state.

    Raises:
        Refused: the log is damaged.
        StorageError: the store does not answer.
    """
    hint = await log.last_checkpoint()
    listing = await log.listing(hint or 0)
    if not any(version <= state.version for version in listing.checkpoints):
        listing = await log.listing()
    start, sizes, removed = await _at_checkpoint(log, listing, state, with_removed)
    if start < 0 and hint:
        listing = await log.listing()
        start, sizes, removed = await _at_checkpoint(log, listing, state, with_removed)
    async for version, commit in log.since(listing, start + 1, state.version):
        try:
            for kind, action in actions_of(commit, _NO_FILES):
                if kind == "add":
                    sizes[action["path"]] = int(action["size"])
                    removed.pop(action["path"], None)
                elif kind == "remove":
                    sizes.pop(action["path"], None)
                    one = Removed(action["path"], int(action.get("deletionTimestamp") or 0))
                    removed[one.path] = one
        except (ValueError, KeyError, TypeError) as error:
            raise log.refused(f"version {version} of its log cannot be read: {error}") from error
    return Files(sizes, removed)


async def _at_checkpoint(
    log: Log, listing: Listing, state: State, with_removed: bool
) -> tuple[int, dict[str, int], dict[str, Removed]]:
    """Return the version of the latest checkpoint that can be read, up to the state's, with its files; -1 for none."""
    async for version, files in log.checkpoints(listing):
        if version > state.version:
            continue
        try:
            sizes = await read_paths(files)
            removed = {one.path: one for one in await read_removed(files)} if with_removed else {}
            return version, sizes, removed
        except DamagedCheckpoint:
            continue
    return -1, {}, {}
