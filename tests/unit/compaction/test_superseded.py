"""Inputs of merges are known by the hash in the output's name, and no other file is taken for one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from arcpipe.compaction.files import LakeFile, parse_file
from arcpipe.compaction.plan import make_plan
from arcpipe.compaction.superseded import inputs_of_merges
from arcpipe.lake.folders import Folder, parse_folder
from arcpipe.lake.keys import Partition, merged_file_name
from arcpipe.storage import Listed
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE


def key_of(number: int, node: str = NODE) -> str:
    return Partition("db", "cpu", HOUR_US).key("arc", HOUR_US, f"{node}-20260101T00{number:04}-1.{number}-0a1b2c3d", 0)


def folder_of(key: str) -> Folder:
    folder = parse_folder(key.rpartition("/")[0])
    assert folder is not None
    return folder


FOLDER = folder_of(key_of(1))


def upload(number: int, size: int = 1000, node: str = NODE) -> Listed:
    return Listed(key_of(number, node), size, 0.0, f"etag{number}")


def merge(inputs: Sequence[Listed], dedup: bool = False, size: int = 5000) -> Listed:
    """Return the output of a merge."""
    files = [parse_file(one, FOLDER, None if dedup else NODE) for one in inputs]
    known: list[LakeFile] = [file for file in files if file is not None]
    known.sort(key=lambda file: file.rank)
    plan = make_plan("file:///lake", FOLDER, known, NODE, dedup)
    return Listed(f"{FOLDER.path}/{merged_file_name(FOLDER.measurement, HOUR_US, plan.merge, 0)}", size, 1.0, "of it")


def keys(files: Sequence[Listed]) -> set[str]:
    return {one.key for one in files}


def test_without_a_merge_no_file_is_an_input() -> None:
    assert inputs_of_merges(FOLDER, [upload(number) for number in range(1, 5)]) == set()


@pytest.mark.parametrize("dedup", [False, True])
def test_the_inputs_of_a_merge_are_known(dedup: bool) -> None:
    files = [upload(number) for number in range(1, 5)]
    late = upload(7)
    assert inputs_of_merges(FOLDER, [late, merge(files, dedup), *files]) == keys(files)


def test_files_that_were_too_large_for_a_merge_are_no_inputs() -> None:
    files = [upload(number, 1000 + number) for number in range(1, 5)]
    large = [upload(0, 9000), upload(2, 8000, OTHER_NODE)]
    assert inputs_of_merges(FOLDER, [*large, *files, merge(files)]) == keys(files)


def test_a_merge_of_a_merge_has_both_generations_for_inputs() -> None:
    first, late = [upload(number) for number in range(1, 4)], [upload(5), upload(6)]
    once = merge(first, size=3000)
    twice = merge([once, *late], size=6000)
    assert inputs_of_merges(FOLDER, [*first, *late, once, twice]) == keys([*first, once, *late])


def test_a_file_that_came_after_a_merge_of_younger_ones_is_an_input_of_the_next_alone() -> None:
    first = [upload(number) for number in range(2, 5)]
    once = merge(first, size=3000)
    before = upload(1)
    assert inputs_of_merges(FOLDER, [before, *first, once]) == set()  # no guess leaves out the first one of a size
    twice = merge([before, once], size=4000)
    assert inputs_of_merges(FOLDER, [*first, once, twice]) == keys(first)  # `before` is gone, so nothing proves more


def test_points_of_several_nodes_are_inputs_of_one_merge() -> None:
    files = [upload(1), upload(2, node=OTHER_NODE), upload(3)]
    assert inputs_of_merges(FOLDER, [*files, merge(files, dedup=True)]) == keys(files)


def test_a_merge_whose_inputs_are_not_all_there_proves_nothing() -> None:
    files = [upload(number) for number in range(1, 5)]
    assert inputs_of_merges(FOLDER, [*files[1:], merge(files)]) == set()
