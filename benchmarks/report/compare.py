"""Compare two files of results: their circumstances first, then figure by figure, with noise told from change.

A ratio is the second file's median divided by the first one's. If the ranges of the runs of both overlap, the
difference is within the noise. If one of them has a single run, the noise is not known.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from rich.console import Console
from rich.text import Text

from benchmarks.report.tables import draw, heading, note
from benchmarks.results.model import RECOVERY, CaseResult, RecoveryCase, Report, SuiteResult

Verdict = Literal["better", "worse", "within the noise", "noise not known"]

# Fields of Machine that describe the moment, not the machine.
_NO_DIFFERENCE: Final = ("load_average",)
_STYLES: Final = {"better": "green", "worse": "red"}
_SEVERAL: Final = 3
# Units to show figures in, by their own unit; the largest first.
_UNITS: Final = {
    "records/s": ((1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")),
    "bytes/s": ((1e9, "GB/s"), (1e6, "MB/s")),
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
}


class NothingInCommon(Exception):
    """The two files have no case in common; the text lists the cases of each."""


class Range(msgspec.Struct, frozen=True):
    """Median and range of a figure over the runs of a case."""

    median: float
    lowest: float
    highest: float
    runs: int


class FigureComparison(msgspec.Struct, frozen=True):
    """One figure of one case in both files."""

    name: str
    unit: str
    a: Range
    b: Range
    ratio: float | None  # of the medians, b by a; None if that of a is 0
    verdict: Verdict


class CaseComparison(msgspec.Struct, frozen=True):
    """A case of both files. The names differ if each file has one target."""

    a: str
    b: str
    figures: list[FigureComparison]


class SuiteComparison(msgspec.Struct, frozen=True):
    """A suite of both files."""

    name: str
    title: str
    cases: list[CaseComparison]


class Difference(msgspec.Struct, frozen=True):
    """A circumstance of the figures that differs."""

    what: str
    a: str
    b: str
    cases: list[str]  # "suite: case"; empty if all differ


class Comparison(msgspec.Struct, frozen=True):
    """A comparison, as it is written to JSON."""

    a: str  # file
    b: str
    differences: list[Difference]
    suites: list[SuiteComparison]
    only_in_a: list[str]  # "suite: case"
    only_in_b: list[str]


class _Figure(NamedTuple):
    name: str
    unit: str
    more_is_better: bool
    value: Callable[[Any], float | None]  # of a run; None if not known


_FIGURES: Final = (
    _Figure("records", "records/s", True, lambda run: run.records_per_second),
    _Figure("p50", "s", False, lambda run: run.latency.p50_seconds),
    _Figure("p99", "s", False, lambda run: run.latency.p99_seconds),
    _Figure("p99.9", "s", False, lambda run: run.latency.p999_seconds),
    _Figure("CPU/request", "s", False, lambda run: run.cpu_seconds_per_request),
    _Figure(
        "into Parquet",
        "records/s",
        True,
        lambda run: run.to_parquet.parquet_records_per_second if run.to_parquet else None,
    ),
)
_RECOVERY_FIGURES: Final = (
    _Figure("verified", "bytes/s", True, lambda run: run.scan_bytes_per_second),
    _Figure("ready", "s", False, lambda run: run.start_seconds),
    _Figure("into Parquet", "bytes/s", True, lambda run: run.upload_bytes_per_second),
)


def compare(path_a: Path, a: Report, path_b: Path, b: Report) -> Comparison:
    """Compare the cases that two files have in common.

    Raises:
        NothingInCommon: There is no such case.
    """
    pairs: list[tuple[SuiteResult, CaseResult, CaseResult]] = []
    suites: list[SuiteComparison] = []
    suites_b = {suite.name: suite for suite in b.suites}
    for suite in a.suites:
        matched = _matched(suite, suites_b[suite.name]) if suite.name in suites_b else []
        pairs += [(suite, case_a, case_b) for case_a, case_b in matched]
        cases = [
            CaseComparison(case_a.name, case_b.name, _figures(_FIGURES, case_a.runs, case_b.runs))
            for case_a, case_b in matched
        ]
        if cases:
            suites.append(SuiteComparison(suite.name, suite.title, cases))
    recovery = _matched_recovery(a, b)
    if recovery:
        suites.append(SuiteComparison(RECOVERY, "Recovery", recovery))
    names_a, names_b = _names(a), _names(b)
    for suite_comparison in suites:
        for case in suite_comparison.cases:
            names_a.remove(f"{suite_comparison.name}: {case.a}")
            names_b.remove(f"{suite_comparison.name}: {case.b}")
    if not suites:
        raise NothingInCommon(
            f"{path_a} and {path_b} have no case in common: the one has {_listed(names_a)}, "
            f"the other {_listed(names_b)}. Measure the same suites twice"
        )
    differences = [*_machine_differences(a, b), *_case_differences(pairs)]
    return Comparison(str(path_a), str(path_b), differences, suites, names_a, names_b)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison as tables."""
    note(console, f"A: {comparison.a}")
    note(console, f"B: {comparison.b}")
    heading(console, "Differences besides the figures")
    if comparison.differences:
        facts = [
            (item.what, item.a or "-", item.b or "-", _listed(item.cases) if item.cases else "all")
            for item in comparison.differences
        ]
        draw(console, ("", "A", "B", "cases"), [True] * 4, facts)
    else:
        note(console, "nothing: the same machine, versions, settings and load")
    for suite in comparison.suites:
        heading(console, suite.title)
        rows: list[tuple[str, ...]] = []
        for case in suite.cases:
            name = case.a if case.a == case.b else f"{case.a} / {case.b}"
            for figure in case.figures:
                ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
                size, unit = _scale(figure)
                shown_a, shown_b = _shown(figure.a, size), _shown(figure.b, size)
                rows.append((name, f"{figure.name}, {unit}", shown_a, shown_b, ratio, figure.verdict))
                name = ""
        draw(
            console,
            ("case", "figure", "A: median (runs)", "B: median (runs)", "B / A", "B is"),
            [True, True, False, False, False, True],
            rows,
            [_STYLES.get(row[-1], "") for row in rows],
        )
    for names, file in ((comparison.only_in_a, "A"), (comparison.only_in_b, "B")):
        if names:
            note(console, f"Only in {file}: {', '.join(names)}")
    if any(f.verdict == "noise not known" for s in comparison.suites for c in s.cases for f in c.figures):
        text = "One run says nothing of the noise: measure with --runs 3 or more to tell it from change."
        console.print(Text(text, "yellow"), soft_wrap=True)


def _matched(a: SuiteResult, b: SuiteResult) -> list[tuple[CaseResult, CaseResult]]:
    if a.is_of_targets and b.is_of_targets and len(a.cases) == len(b.cases) == 1:
        return [(a.cases[0], b.cases[0])]
    cases_b = {case.name: case for case in b.cases}
    return [(case, cases_b[case.name]) for case in a.cases if case.name in cases_b]


def _matched_recovery(a: Report, b: Report) -> list[CaseComparison]:
    cases_b: dict[str, RecoveryCase] = {case.name: case for case in b.recovery}
    return [
        CaseComparison(case.name, case.name, _figures(_RECOVERY_FIGURES, case.runs, cases_b[case.name].runs))
        for case in a.recovery
        if case.name in cases_b
    ]


def _names(report: Report) -> list[str]:
    return [
        *(f"{suite.name}: {case.name}" for suite in report.suites for case in suite.cases),
        *(f"{RECOVERY}: {case.name}" for case in report.recovery),
    ]


def _figures(figures: Sequence[_Figure], runs_a: Sequence[Any], runs_b: Sequence[Any]) -> list[FigureComparison]:
    """Compare the figures that are known of all runs."""
    found = []
    for figure in figures:
        a, b = _range(figure, runs_a), _range(figure, runs_b)
        if a is not None and b is not None:
            ratio = b.median / a.median if a.median else None
            found.append(FigureComparison(figure.name, figure.unit, a, b, ratio, _verdict(figure, a, b)))
    return found


def _range(figure: _Figure, runs: Sequence[Any]) -> Range | None:
    values = [value for run in runs if (value := figure.value(run)) is not None]
    if not values or len(values) < len(runs):
        return None
    return Range(statistics.median(values), min(values), max(values), len(values))


def _verdict(figure: _Figure, a: Range, b: Range) -> Verdict:
    if min(a.runs, b.runs) < 2:
        return "noise not known"
    if a.lowest <= b.highest and b.lowest <= a.highest:
        return "within the noise"
    return "better" if (b.lowest > a.highest) == figure.more_is_better else "worse"


def _machine_differences(a: Report, b: Report) -> list[Difference]:
    facts_a, facts_b = _flat(msgspec.to_builtins(a.machine)), _flat(msgspec.to_builtins(b.machine))
    return [
        Difference(key, facts_a.get(key, ""), facts_b.get(key, ""), [])
        for key in dict.fromkeys([*facts_a, *facts_b])
        if key not in _NO_DIFFERENCE and facts_a.get(key) != facts_b.get(key)
    ]


def _case_differences(pairs: Sequence[tuple[SuiteResult, CaseResult, CaseResult]]) -> list[Difference]:
    """List differences in settings, load and workers; one that several cases share is listed once."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for suite, a, b in pairs:
        facts_a, facts_b = _case_facts(a), _case_facts(b)
        for key in dict.fromkeys([*facts_a, *facts_b]):
            values = facts_a.get(key, ""), facts_b.get(key, "")
            if values[0] != values[1]:
                where.setdefault((key, *values), []).append(f"{suite.name}: {a.name}")
    return [
        Difference(key, value_a, value_b, [] if len(cases) == len(pairs) else cases)
        for (key, value_a, value_b), cases in where.items()
    ]


def _case_facts(case: CaseResult) -> dict[str, str]:
    load = {f"load: {key}": value for key, value in _flat(msgspec.to_builtins(case.runs[0].load)).items()}
    return {**case.settings, **load, "workers": str(case.runs[0].workers), "runs": str(len(case.runs))}


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Flatten nested maps to their inner keys, with all values as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat.update(_flat(value) if isinstance(value, dict) else {key: f"{value}"})
    return flat


def _scale(figure: FigureComparison) -> tuple[float, str]:
    """Choose a unit in which the larger of two values reads well; return it and its size."""
    largest = max(figure.a.median, figure.b.median)
    units = _UNITS[figure.unit]
    return next(((size, name) for size, name in units if largest >= size), units[-1])


def _shown(range_: Range, size: float) -> str:
    middle, lowest, highest = (_three_digits(value / size) for value in (range_.median, range_.lowest, range_.highest))
    return middle if range_.runs == 1 else f"{middle} ({lowest}–{highest})"


def _three_digits(value: float) -> str:
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _SEVERAL} more" if len(names) > _SEVERAL else ""
    return ", ".join(names[:_SEVERAL]) + more
