"""The files of a folder of the lake: which ones are final, and which are worth merging.

Pure functions over a listing. This module must not know stores or Parquet.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from arcpipe.lake.folders import Folder
from arcpipe.storage import Listed
from arcpipe.units import MB

SUFFIX: Final = ".parquet"

# {measurement}_{first time}_{batch id}_{number}.parquet. Of the first time, µs follow the seconds. A batch id is
# {node}-{time}-{boot}.{number}-{random}, with a part's number if the batch was isolated. Merges have a word and a hash
# in place of the random digits. `fit` and a hash follow if the file was written anew to fit its table.
_NAME: Final = re.compile(
    r"_\d{8}T\d{12}_(?P<batch>(?P<node>[^/]+?)-(?P<time>\d{8}T\d{6})-(?P<boot>\d+)\.(?P<number>\d+)"
    r"(?:-(?:(?P<word>merged|unique)(?P<hash>[0-9a-f]{16})|[0-9a-f]+))?)(?:\.(?P<part>\d+))?(?:\.fit[0-9a-f]{16})?"
    r"_(?P<file>\d+)\.parquet\Z"
)
# Files up to this size count as this large: to write them again costs less than to keep them apart.
_LEAST_BYTES: Final = MB
# A file is merged only with smaller ones that are together at least the fourth part of it. So each merge makes the
# file that holds a row larger by a quarter, or it is below _LEAST_BYTES: from 1 MB to 128 MB a row is written at most
# 22 times, however its hour is filled. And files that are left are each four times all smaller ones together: at
# most 4 of them below 128 MB.
_RATIO: Final = 4
MAX_INPUTS: Final = 10_000
"""Files of one merge: the plan lists them, with 200 bytes each."""


class Order(NamedTuple):
    """The order in which files were written: by batch, then by file. Of equal points the last counts."""

    boot: int
    number: int
    part: int
    file: int


Rank = tuple[str, Order]
"""The place of a file, or of a batch, among those of several nodes: by the batch's time first. Empty for one node."""


class LakeFile(NamedTuple):
    """A file that an uploader wrote, or a merge."""

    listed: Listed
    batch: str  # the batch, without its part: the name of its files in `batches/`
    order: Order
    time: str  # of the batch
    word: str  # "merged" or "unique" if compaction made it; else empty
    node: str = ""
    of_several: bool = False  # whether files of several nodes are compared, whose boots and numbers say nothing

    @property
    def rank(self) -> Rank:
        return self.time if self.of_several else "", self.order

    @property
    def size(self) -> int:
        return self.listed.size


def parse_file(listed: Listed, folder: Folder, node: str | None) -> LakeFile | None:
    """Parse an object of the folder; None if this node, or with None any node, did not upload it.

    Files of any node are compared by the times of their batches.
    """
    name = listed.key[len(folder.path) + 1 :]
    match = _NAME.fullmatch(name, len(folder.measurement)) if name.startswith(folder.measurement) else None
    if match is None or node not in (None, match["node"]):
        return None
    order = Order(int(match["boot"]), int(match["number"]), int(match["part"] or 0), int(match["file"]))
    return LakeFile(listed, match["batch"], order, match["time"], match["word"] or "", match["node"], node is None)


def batch_of(filename: str) -> str:
    """Return the batch that a file in `batches/` belongs to; files of none have a name that is no batch."""
    for suffix in (".tmp", ".json", ".uploaded", ".journal"):
        filename = filename.removesuffix(suffix)
    return filename


def final(files: Iterable[LakeFile], unfinished: Collection[str], modified_before: float) -> list[LakeFile]:
    """Choose the files that no batch and no late request writes again, in their order.

    Args:
        unfinished: batches that have a file in `batches/`.
        modified_before: seconds since the epoch.
    """
    ready = [file for file in files if file.batch not in unfinished and file.listed.modified < modified_before]
    return sorted(ready, key=lambda file: file.rank)


def choose(files: Sequence[LakeFile], max_file_bytes: int) -> list[LakeFile]:
    """Choose the files of a folder that are worth merging, in their order. Nothing if there are fewer than two.

    The smallest ones, as many as `_RATIO` allows. A file of half the largest size stays as it is.
    """
    small = sorted((file for file in files if file.size < max_file_bytes // 2), key=lambda file: file.size)
    sizes = [max(file.size, _LEAST_BYTES) for file in small]
    count = below = 0
    for index, size in enumerate(sizes[:MAX_INPUTS]):
        if index and size <= _RATIO * below:
            count = index + 1
        below += size
    return sorted(small[:count], key=lambda file: file.rank)


def choose_for_dedup(
    files: Iterable[LakeFile], ready: Sequence[LakeFile], unfinished_from: Rank | None
) -> list[LakeFile]:
    """Choose all files of a folder, in their order, if a point of them may be there twice.

    A merge holds all that is older than its last file, or the order of its rows would be lost. So it ends before the
    first file that is not final, and before the first batch that is not over.

    Args:
        files: all of this node, or of all nodes.
        ready: those that are final, in their order.
        unfinished_from: the first batch that is not over.
    """
    ends = [file.rank for file in set(files).difference(ready)]
    end = min([*ends, *([unfinished_from] if unfinished_from is not None else [])], default=None)
    chosen = [file for file in ready if end is None or file.rank < end]
    if all(file.word == "unique" for file in chosen) and len({file.batch for file in chosen}) <= 1:
        return []
    return chosen[:MAX_INPUTS]


def first_unfinished(unfinished: Iterable[str], of_several: bool = False) -> Rank | None:
    """Return the place of the first of these batches in the order; None without batches.

    Args:
        of_several: whether files of several nodes are compared.
    """
    found = [re.search(r"-(\d{8}T\d{6})-(\d+)\.(\d+)(?:-[0-9a-f]+)?\Z", batch) for batch in unfinished]
    ranks = [
        (match[1] if of_several else "", Order(int(match[2]), int(match[3]), 0, 0))
        for match in found
        if match is not None
    ]
    return min(ranks, default=None)
