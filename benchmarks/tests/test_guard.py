"""The regression guard: its arithmetic, and a short real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.guard import command
from benchmarks.guard.baseline import (
    OTHER_MACHINE_TOLERANCE,
    TOLERANCE,
    Baseline,
    GuardFailed,
    Measured,
    Pair,
    Recorded,
    is_alike,
    judge,
    lower,
    read_baseline,
    recorded,
    summary,
)
from benchmarks.system.children import ROOT
from benchmarks.system.machine import Machine, describe, is_in_memory
from tests.support.sets import long

HERE = describe(None)
ELSEWHERE = msgspec.structs.replace(HERE, cpu="another processor")


def measured(ratio: float, case: str = "one", reference: str = "bare") -> Measured:
    return Measured(case, reference, "request", ratio * 10, 10.0, ratio)


def baseline(*ratios: float, spread: float = 0.0, machine: Machine = HERE, case: str = "one") -> Baseline:
    cases = [Recorded(case, "bare", "request", ratio * 10, 10.0, ratio, spread) for ratio in ratios]
    return Baseline("2026-11-29T00:00:00+00:00", 3, machine, cases)


def test_a_ratio_is_that_of_the_least_costs() -> None:
    found = summary("one", "bare", "request", [Pair(30, 10), Pair(24, 14), Pair(90, 12)])
    assert (found.cost_us, found.reference_us, found.ratio) == (24, 10, 2.4)


@pytest.mark.parametrize("pairs", [[], [Pair(1, 0)], [Pair(0, 1), Pair(1, 1)]])
def test_a_case_without_cpu_time_is_no_figure(pairs: list[Pair]) -> None:
    with pytest.raises(GuardFailed, match="one: no CPU time was measured"):
        summary("one", "bare", "request", pairs)


@pytest.mark.parametrize(
    ("machine", "tolerance"), [(HERE, TOLERANCE), (ELSEWHERE, OTHER_MACHINE_TOLERANCE)], ids=["alike", "another"]
)
def test_a_bound_is_wider_on_another_machine(machine: Machine, tolerance: float) -> None:
    known = baseline(2.0, machine=machine)
    bound = 2.0 * (1 + tolerance)
    [below] = judge([measured(bound - 0.01)], known, HERE)
    [above] = judge([measured(bound + 0.01)], known, HERE)
    assert (below.word, above.word) == ("ok", "slower")
    assert below.bound == above.bound == pytest.approx(bound)


def test_a_case_that_varied_when_it_was_recorded_has_a_wider_bound() -> None:
    [verdict] = judge([measured(1.29)], baseline(1.0, spread=0.15), HERE)
    assert verdict.bound == pytest.approx(1.3)
    assert verdict.word == "ok"


@pytest.mark.parametrize(
    ("reference_us", "tolerance"), [(8.6, TOLERANCE), (11.4, TOLERANCE), (8.4, OTHER_MACHINE_TOLERANCE), (12.0, 0.25)]
)
def test_a_bound_is_wider_where_the_machine_is_not_as_fast_as_it_was(reference_us: float, tolerance: float) -> None:
    found = Measured("one", "bare", "request", reference_us * 4, reference_us, 4.0)
    [verdict] = judge([found], baseline(4.0), HERE)
    assert verdict.bound == pytest.approx(4.0 * (1 + tolerance))


def test_a_case_of_another_name_or_reference_has_no_baseline() -> None:
    verdicts = judge([measured(1.0, "two"), measured(1.0, reference="other")], baseline(1.0), HERE)
    assert [verdict.word for verdict in verdicts] == ["no baseline"] * 2
    assert not any(verdict.is_slower for verdict in verdicts)


def test_what_is_measured_again_counts_where_it_is_lower() -> None:
    first = {"one": measured(2.0), "two": measured(1.0, "two")}
    again = {"one": measured(1.5), "two": measured(3.0, "two")}
    assert [one.ratio for one in lower(first, again).values()] == [1.5, 1.0]


def test_a_baseline_has_the_median_and_the_range_of_its_repeats() -> None:
    [case] = recorded([{"one": measured(ratio)} for ratio in (2.0, 2.6, 2.2)])
    assert (case.ratio, case.cost_us) == (2.2, 22.0)
    assert case.spread == pytest.approx(0.6 / 2.2)


def test_machines_are_alike_if_processor_and_versions_are() -> None:
    assert is_alike(HERE, msgspec.structs.replace(HERE, load_average=99.0, kernel="Linux 7"))
    assert not is_alike(HERE, ELSEWHERE)
    assert not is_alike(HERE, msgspec.structs.replace(HERE, packages={**HERE.packages, "numpy": "0"}))


def test_a_baseline_that_is_none_tells_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(GuardFailed, match=r"there is no baseline .*--guard --record"):
        read_baseline(path, False)
    path.write_text('{"cases": 1}')
    with pytest.raises(GuardFailed, match=r"is no baseline .*--guard --record"):
        read_baseline(path, False)


@pytest.mark.parametrize("has_kernel", [False, True])
def test_the_committed_baselines_have_every_case(has_kernel: bool) -> None:
    known = read_baseline(command.BASELINES[has_kernel], has_kernel)
    assert [case.case for case in known.cases] == list(command.CASE_NAMES)
    with pytest.raises(
        GuardFailed, match=r"recorded (with|without) the native kernel, and this run is (with|without) "
    ):
        read_baseline(command.BASELINES[has_kernel], not has_kernel)


@long
@pytest.mark.skipif(is_in_memory(ROOT), reason="the harness measures nothing in memory")
def test_a_real_run_tells_the_part_that_is_slower(tmp_path: Path) -> None:
    """Of a part far below its bound and one far above it, the run tells both apart, and fails."""
    factors = {"columns, 1 record": 1e6, "WAL, groups of 100 records": 1e-6}
    known = read_baseline(command.BASELINES[command.HAS_KERNEL], command.HAS_KERNEL)
    cases = [msgspec.structs.replace(one, ratio=one.ratio * factors.get(one.case, 1)) for one in known.cases]
    path = tmp_path / "baseline.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, cases=cases)))
    options = [option for name in factors for option in ("--case", name)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--guard", "--runs", "1", "--baseline", str(path), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    words = {name: line.split()[-1] for line in done.stdout.splitlines() for name in factors if line.startswith(name)}
    assert words == {"columns, 1 record": "ok", "WAL, groups of 100 records": "slower"}


def test_options_of_the_guard_without_it_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--record"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "go with --guard" in done.stderr
