"""Which files of a folder are inputs of a merge whose output is there: what a lost table cannot tell any more. Pure.

The name of a merge has a hash of its inputs. So a guess at them can be proven. The guess is what the merge would choose
now, of the files that are not younger than its last input: the smallest ones, or all of them with `dedup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from arcpipe.compaction.files import LakeFile, parse_file
from arcpipe.compaction.plan import UNIQUE, digest_of
from arcpipe.lake.folders import Folder
from arcpipe.storage import Listed

_MOST_GUESSES: Final = 100  # of one merge: each hashes the names of its files


def inputs_of_merges(folder: Folder, listed: Iterable[Listed]) -> set[str]:
    """Return the keys of files whose rows are in other files of the folder, too.

    Args:
        listed: the whole folder.
    """
    files = [file for one in listed if (file := parse_file(one, folder, None)) is not None]
    files.sort(key=lambda file: file.rank)
    merges = {file.batch: file for file in files if file.word}
    found: set[str] = set()
    while merges:
        left = [file for file in files if file.listed.key not in found]
        known = {batch: inputs for batch, merge in merges.items() if (inputs := _inputs_of(merge, left))}
        if not known:
            break
        for batch, inputs in known.items():  # without them, the inputs of other merges may be seen
            found.update(file.listed.key for file in inputs)
            del merges[batch]
    return found


def _inputs_of(merge: LakeFile, files: Sequence[LakeFile]) -> Sequence[LakeFile]:
    """Return the inputs of a merge; none if they are not known."""
    others = [file for file in files if file.batch != merge.batch]
    for guess in _guesses(merge, others):
        if guess and merge.batch.endswith(digest_of(guess, merge.word == UNIQUE)):
            return guess
    return []


def _guesses(merge: LakeFile, others: Sequence[LakeFile]) -> Iterator[Sequence[LakeFile]]:
    """Yield what may be the inputs, the likeliest first. `others` are in the order of several nodes."""
    own = [file for file in others if file.node == merge.node and file.order[:2] <= merge.order[:2]]
    own.sort(key=lambda file: file.order)
    yield own
    yield [file for file in own if not file.word]
    if merge.word == UNIQUE:
        yield [file for file in others if file.time <= merge.time]
        return
    by_size = sorted(own, key=lambda file: file.size)
    for count in range(len(own) - 1, max(len(own) - _MOST_GUESSES, 1), -1):
        yield sorted(by_size[:count], key=lambda file: file.order)
