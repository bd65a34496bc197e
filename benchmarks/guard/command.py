"""Run the guard: measure the cases, hold them against the baseline, or record a new one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from arcpipe.native import KERNEL
from benchmarks.guard import alone, served
from benchmarks.guard.baseline import (
    OTHER_MACHINE_TOLERANCE,
    TOLERANCE,
    Baseline,
    GuardFailed,
    Measured,
    Pair,
    Verdict,
    is_alike,
    judge,
    lower,
    read_baseline,
    recorded,
    summary,
)
from benchmarks.report import tables
from benchmarks.system import machine
from benchmarks.system.children import spawn
from benchmarks.system.server import ServerFailed

_FOLDER: Final = Path(__file__).parent
HAS_KERNEL: Final = KERNEL is not None
BASELINES: Final = {False: _FOLDER / "baseline.json", True: _FOLDER / "baseline_kernel.json"}
"""The committed baselines, without the native kernel and with it."""
ROUNDS: Final = 15
# Whole measurements of `--record`, whose range tells what is noise.
_REPEATS: Final = 3

CASE_NAMES: Final = (*(case.name for case in served.CASES), *(case.name for case in alone.CASES))


def guard(directory: Path, names: Collection[str], rounds: int, baseline: Path | None, *, record: bool) -> int:
    """Hold this checkout against the baseline, or record one; return the exit code.

    Args:
        directory: For files, on the disk to measure.
        names: Cases to measure; all if there are none.
        rounds: Turns of each part and its reference.
        baseline: The file of the baseline; None is the committed one for what is in use, with the kernel or without.
        record: Write a new baseline instead of reading one.
    """
    chosen = [name for name in CASE_NAMES if not names or name in names]
    here = machine.describe(directory)
    path = baseline or BASELINES[HAS_KERNEL]
    out = Console(highlight=False)
    try:
        known = None if record else read_baseline(path, HAS_KERNEL)
        tables.show_machine(out, here)
        if known is None:
            _record(directory, chosen, rounds, path, here, out)
            return 0
        verdicts = _verdicts(directory, chosen, rounds, known, here)
    except (GuardFailed, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _show(out, verdicts, known, here)
    return 1 if any(verdict.word != "ok" for verdict in verdicts) else 0


def _verdicts(directory: Path, names: list[str], rounds: int, known: Baseline, here: machine.Machine) -> list[Verdict]:
    """Measure the cases, and those that seem slower once more: only what is slower twice is slower."""
    found = _measure(directory, names, rounds)
    slower = [verdict.measured.case for verdict in judge(found.values(), known, here) if verdict.is_slower]
    if slower:
        print(f"once more, because they seem slower: {', '.join(slower)}", file=sys.stderr)
        found = lower(found, _measure(directory, slower, 2 * rounds))
    return judge(found.values(), known, here)


def _record(directory: Path, names: list[str], rounds: int, path: Path, here: machine.Machine, out: Console) -> None:
    if len(names) < len(CASE_NAMES):
        raise GuardFailed("--record measures all cases: leave --case out")
    repeats = [_measure(directory, names, rounds) for _ in range(_REPEATS)]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    baseline = Baseline(now, _REPEATS, here, recorded(repeats), HAS_KERNEL)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=1) + b"\n")
    rows = [
        (one.case, one.reference, _us(one.cost_us, one.unit), f"{one.ratio:.3f}", f"{one.spread:.1%}")
        for one in baseline.cases
    ]
    titles = ("case", "reference", "CPU", "ratio", "range")
    tables.draw(out, titles, [True, True, False, False, False], rows)
    tables.note(out, f"the least costs of {rounds} rounds, {_REPEATS} times; recorded in {path}")


def _measure(directory: Path, names: Collection[str], rounds: int) -> dict[str, Measured]:
    return asyncio.run(_measured(directory, names, rounds))


async def _measured(directory: Path, names: Collection[str], rounds: int) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    requests = [case for case in served.CASES if case.name in names]
    if requests:
        for name, pairs in (await served.measure(requests, directory, rounds)).items():
            found[name] = summary(name, served.REFERENCE, "request", pairs)
    parts = [case for case in alone.CASES if case.name in names]
    if parts:
        costs = await _alone(directory, [case.name for case in parts], rounds)
        for case in parts:
            found[case.name] = summary(case.name, case.reference, case.unit, costs[case.name])
    return found


async def _alone(directory: Path, names: list[str], rounds: int) -> dict[str, list[Pair]]:
    process = await spawn("benchmarks.guard.alone", str(directory), str(rounds), *names, stdout=True)
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise GuardFailed(f"the parts without a server ended with exit code {process.returncode}; see above")
    return msgspec.json.decode(output, type=dict[str, list[Pair]])


def _show(out: Console, verdicts: list[Verdict], known: Baseline, here: machine.Machine) -> None:
    titles = ("case", "reference", "CPU", "reference's", "ratio", "baseline", "bound", "")
    rows = [
        (
            verdict.measured.case,
            verdict.measured.reference,
            _us(verdict.measured.cost_us, verdict.measured.unit),
            f"{verdict.measured.reference_us:.1f} µs",
            f"{verdict.measured.ratio:.3f}",
            "" if verdict.baseline is None else f"{verdict.baseline:.3f}",
            "" if verdict.bound is None else f"{verdict.bound:.3f}",
            verdict.word,
        )
        for verdict in verdicts
    ]
    tables.draw(out, titles, [True, True, False, False, False, False, False, True], rows)
    alike = is_alike(here, known.machine)
    least = TOLERANCE if alike else OTHER_MACHINE_TOLERANCE
    where = "a machine like this" if alike else f"another machine ({known.machine.cpu}, {known.machine.python})"
    tables.note(
        out,
        f"the baseline was recorded on {where} at {known.recorded_at}; bounds are at least {least:.0%} above it"
        + (f", and {OTHER_MACHINE_TOLERANCE:.0%} where the reference is not as fast as it was then" if alike else ""),
    )
    missing = [verdict.measured.case for verdict in verdicts if verdict.bound is None]
    if missing:
        tables.note(out, f"without a baseline: {', '.join(missing)}; record one with --guard --record")


def _us(cost_us: float, unit: str) -> str:
    return f"{cost_us:,.1f} µs per {unit}"
