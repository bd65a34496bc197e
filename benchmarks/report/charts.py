"""Charts of results, as SVG and PNG: throughput, latency over percentiles, backlog over time, figures along an axis.

Their white background makes them look the same in light and dark pages. People with any kind of colour vision can tell
their colours apart (Okabe and Ito's palette).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.report.tables import plural
from benchmarks.results.histogram import Histogram
from benchmarks.results.model import CaseResult, Report, Run, SuiteResult
from benchmarks.system.machine import Machine

_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
_COLOURS: Final = (_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED, "#000000")
_DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), "-", (0, (6, 2)), (0, (2, 1.5)))
_MARKERS: Final = "os^Dv<>"
_INK, _GREY, _FAINT = "#1F2328", "#59636E", "#D1D9E0"
_WIDTH_INCHES: Final = 8.4
_PNG_DOTS_PER_INCH: Final = 200
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "arcpipe",  # the same chart is the same file
}
# Percentiles at the ticks of the latency axis, as in HdrHistogram's plotter.
_PERCENTILES: Final = (0.0, 90.0, 99.0, 99.9, 99.99)
_POINTS: Final = 120
# Part of the time axis before which the end of a load is early.
_EARLY: Final = 0.3
# Factor between neighbouring rates from which on the line between them is steep.
_STEEP: Final = 1.05
# Part of the highest rate from which on a point has space for its number below.
_HIGH: Final = 0.15
# Limits of the disk up to this multiple of the longest bar are drawn.
_FARTHEST_LIMIT: Final = 2.5


class _Axis(NamedTuple):
    """A number that differs from case to case."""

    label: str
    value: Callable[[Run], int]


_AXES: Final = (
    _Axis("records per body", lambda run: run.load.records_per_body),
    _Axis("connections", lambda run: run.load.connections),
    _Axis("ingest workers", lambda run: run.workers),
    _Axis("measurements", lambda run: run.load.measurements),
)


def write_charts(report: Report, directory: Path) -> list[Path]:
    """Write every chart that suits the results, each as SVG and PNG; return the files.

    Raises:
        OSError: A file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    with rc_context(_STYLE):
        for name, figure in _charts(report):
            for suffix in ("svg", "png"):
                path = directory / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else {}
                figure.savefig(path, dpi=_PNG_DOTS_PER_INCH, facecolor="white", metadata=metadata)
                files.append(path)
    return files


def _charts(report: Report) -> Iterator[tuple[str, Figure]]:
    for suite in report.suites:
        name = _slug(suite.name)
        axis = _natural_axis(suite)
        if axis is not None:
            yield f"{name}", _along_axis(suite, axis, report.machine)
        else:
            # The rate of an open loop is that of the load, not of the server; and one bar needs no chart.
            if len(suite.cases) > 1 and not any(run.load.records_per_second for run in suite.runs):
                yield f"{name}-throughput", _throughput(suite, report.machine)
            if len(suite.cases) <= len(_COLOURS):
                yield f"{name}-latency", _latency(suite, report.machine)
        for case in suite.cases:
            if case.runs[-1].to_parquet is not None:
                label = name if len(suite.cases) == 1 else f"{name}-{_slug(case.name)}"
                yield f"{label}-backlog", _backlog(suite, case, report.machine)


def _throughput(suite: SuiteResult, machine: Machine) -> Figure:
    """Draw a bar for each case, a line from the worst to the best run, and the limit of the disk where it is known."""
    cases = list(reversed(suite.cases))
    figure, (axes,) = _figure(suite.title, _load_line(suite, "median"), machine, 1.75 + 0.46 * len(cases))
    places = np.arange(len(cases))
    medians = [case.median(lambda run: run.records_per_second) for case in cases]
    axes.barh(places, medians, height=0.58, color=_BLUE)
    longest = max(medians)
    # If the disk is much faster, its marks would only squeeze the bars; the share says enough then.
    limits = [limit for case in cases if (limit := _device_limit(case)) is not None]
    are_limits_drawn = bool(limits) and max(limits) <= _FARTHEST_LIMIT * longest
    for place, case, median in zip(places, cases, medians, strict=True):
        rates = [run.records_per_second for run in case.runs]
        longest = max(longest, *rates)
        if len(rates) > 1:
            axes.plot([min(rates), max(rates)], [place, place], color=_INK, linewidth=1.2, solid_capstyle="butt")
        limit = _device_limit(case)
        shares = []
        if limit is not None:
            shares.append(f"{median / limit:.0%} of the disk alone")
        if limit is not None and are_limits_drawn:
            longest = max(longest, limit)
            axes.plot([limit, limit], [place - 0.38, place + 0.38], color=_RED, linewidth=2.5)
        share = suite.share_of_baseline(case)
        if share is not None and case.name != suite.baseline:
            shares.insert(0, f"{share:.0%} of {suite.baseline}")
        place_of_text: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(
            _three_digits(median), (1, place), (8, 6 if shares else 0), va="center", fontweight="bold", **place_of_text
        )
        axes.annotate(", ".join(shares), (1, place), (8, -7), va="center", fontsize=8.5, color=_GREY, **place_of_text)
    axes.set_yticks(places, [case.name for case in cases])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, longest * 1.02)
    axes.margins(y=0.03)
    _rate_axis(axes.xaxis, axes)
    axes.set_xlabel("records acknowledged per second")
    if are_limits_drawn:
        axes.plot([], [], color=_RED, linewidth=2.5, label="the disk alone: writes and syncs of the same groups")
        _legend(axes)
    return figure


def _device_limit(case: CaseResult) -> float | None:
    """Return the records per second of a WAL as fast as a bare loop of the same writes and syncs."""
    known = [run.records_per_second / run.share_of_device for run in case.runs if run.share_of_device]
    return float(np.median(known)) if known else None


def _latency(suite: SuiteResult, machine: Machine) -> Figure:
    """Draw latency over percentiles; each decade to the right is ten times rarer."""
    figure, (axes,) = _figure(suite.title, _load_line(suite, "together"), machine, 3.9)
    rarest = _PERCENTILES[1]
    for index, case in enumerate(suite.cases):
        histogram = Histogram()
        for run in case.runs:
            histogram.merge(Histogram(run.latency.hdr_histogram))
        # Beyond this percentile, every one is the maximum.
        last = min(_PERCENTILES[-1], 100 * (1 - 1 / max(histogram.count, 10)))
        rarest = max(rarest, last)
        rarity = np.geomspace(1, 1 / (1 - last / 100), _POINTS)
        values = [histogram.percentile(100 * (1 - 1 / one)) * 1e3 for one in rarity]
        axes.plot(rarity, values, label=case.name, **_line(index))
    shown = [percent for percent in _PERCENTILES if percent <= rarest + 1e-9]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - percent / 100) for percent in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.6g}%"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(1, 1 / (1 - rarest / 100))
    axes.set_xlabel("percentile of requests")
    axes.set_ylabel("latency, ms")
    axes.grid(True)
    _legend(axes)
    return figure


def _backlog(suite: SuiteResult, case: CaseResult, machine: Machine) -> Figure:
    """Draw acknowledged and uploaded records over time, and their difference below."""
    run = case.runs[-1]
    figure, (axes, below) = _figure(suite.title, _load_line(suite, "last"), machine, 4.9, (3, 2))
    seconds = [sample.seconds for sample in run.samples]
    axes.plot(seconds, [s.acknowledged_records for s in run.samples], label="acknowledged", **_line(0))
    axes.plot(seconds, [s.parquet_records for s in run.samples], label="in Parquet", color=_ORANGE)
    below.fill_between(seconds, [s.backlog_records for s in run.samples], color=_SKY, alpha=0.5, linewidth=0)
    below.plot(seconds, [s.backlog_records for s in run.samples], color=_BLUE, linewidth=1.5)
    axes.set_ylabel("records")
    below.set_ylabel("backlog, records")
    below.set_xlabel("seconds since the first request")
    end = run.load.warmup_seconds + run.load.seconds
    for one in (axes, below):
        one.axvline(end, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
        one.set_xlim(0, max(seconds[-1], end))
        one.margins(y=0.1)
        one.set_ylim(0)
        one.grid(True, axis="y")
        _rate_axis(one.yaxis, one, 4)
    # At the bottom left, unless the curves begin there.
    is_early = end < _EARLY * max(seconds[-1], end)
    axes.annotate(
        "end of the load",
        (end, 1 if is_early else 0),
        xycoords=("data", "axes fraction"),
        xytext=(5, -6) if is_early else (-5, 6),
        textcoords="offset points",
        ha="left" if is_early else "right",
        va="top" if is_early else "baseline",
        color=_GREY,
        fontsize=9,
    )
    axes.tick_params(labelbottom=False)
    _legend(axes)
    return figure


def _natural_axis(suite: SuiteResult) -> _Axis | None:
    """Return the axis that the cases differ in, if it is the only one and each case has another value."""
    firsts = [case.runs[0] for case in suite.cases]
    differing = [axis for axis in _AXES if len({axis.value(run) for run in firsts}) > 1]
    if len(differing) != 1 or len(firsts) < 2 or len({run.load.format for run in firsts}) > 1:
        return None
    return differing[0] if len({differing[0].value(run) for run in firsts}) == len(firsts) else None


def _along_axis(suite: SuiteResult, axis: _Axis, machine: Machine) -> Figure:
    """Draw throughput, p50 and p99 along an axis."""
    figure, (axes, below) = _figure(suite.title, _load_line(suite, "median", axis.label), machine, 4.9, (3, 2))
    cases = sorted(suite.cases, key=lambda case: axis.value(case.runs[0]))
    places = [axis.value(case.runs[0]) for case in cases]
    rates = [case.median(lambda run: run.records_per_second) for case in cases]
    worsts = [min(run.records_per_second for run in case.runs) for case in cases]
    bests = [max(run.records_per_second for run in case.runs) for case in cases]
    axes.plot(places, rates, marker="o", **_line(0))
    axes.vlines(places, worsts, bests, color=_BLUE, linewidth=1.2)
    for index, (place, worst, best) in enumerate(zip(places, worsts, bests, strict=True)):
        beside = _beside(rates, index)
        edge = worst if beside.get("va") == "top" else best
        axes.annotate(_three_digits(rates[index]), (place, edge), textcoords="offset points", fontsize=9, **beside)
    for index, (name, value) in enumerate(
        (("p50", lambda run: run.latency.p50_seconds), ("p99", lambda run: run.latency.p99_seconds)), 1
    ):
        below.plot(
            places, [case.median(value) * 1e3 for case in cases], label=name, marker=_MARKERS[index], **_line(index)
        )
    is_wide = max(places) / max(min(places), 1) > 8
    for one in (axes, below):
        if is_wide:
            one.set_xscale("log")
        one.xaxis.set_major_locator(FixedLocator(places))
        one.xaxis.set_minor_locator(NullLocator())
        one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        one.grid(True, axis="y")
    below.set_yscale("log")
    low, high = below.get_ylim()
    below.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    below.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, max(bests) * 1.15)
    _rate_axis(axes.yaxis, axes, 4)
    axes.set_ylabel("records per second")
    below.set_ylabel("latency, ms")
    below.set_xlabel(axis.label)
    axes.tick_params(labelbottom=False)
    _legend(below)
    return figure


def _beside(rates: Sequence[float], index: int) -> dict[str, Any]:
    """Place the number of a point where the line through it does not cross the number."""
    before, rate, after = rates[max(index - 1, 0)], rates[index], rates[min(index + 1, len(rates) - 1)]
    falls, rises = before > rate * _STEEP, after > rate * _STEEP
    if falls and (rises or index == len(rates) - 1) and rate > max(rates) * _HIGH:
        return {"xytext": (0, -6), "ha": "center", "va": "top"}
    return {"xytext": (-4, 6), "ha": "right"} if rises and index else {"xytext": (0, 6), "ha": "center"}


def _figure(
    title: str, subtitle: str, machine: Machine, height: float, parts: Sequence[int] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Make a figure with its titles, the machine below, and plots above each other."""
    layout = ConstrainedLayoutEngine(rect=(0.005, 0.32 / height, 0.985, 1 - 0.92 / height))
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout=layout)
    figure.text(0.16 / _WIDTH_INCHES, 1 - 0.16 / height, title, fontsize=12.5, fontweight="bold", va="top")
    figure.text(0.16 / _WIDTH_INCHES, 1 - 0.43 / height, subtitle, fontsize=9, color=_GREY, va="top")
    figure.text(0.16 / _WIDTH_INCHES, 0.12 / height, _machine_line(machine), fontsize=8, color=_GREY, va="bottom")
    plots = figure.subplots(len(parts), 1, height_ratios=parts, squeeze=False)
    return figure, list(plots[:, 0])


def _line(index: int) -> dict[str, Any]:
    """Choose a colour and a dash for a line of a plot."""
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _DASHES[index % len(_DASHES)]}


def _rate_axis(axis: XAxis | YAxis, axes: Axes, ticks: int = 6) -> None:
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(True, axis="x" if axis is axes.xaxis else "y")


def _short(value: float) -> str:
    """Format a number for an axis: 2 M, 500 k."""
    size, unit = _size(value)
    return f"{value / size:g}{unit}"


def _three_digits(value: float) -> str:
    """Format a number with three digits: 12.3 M, 3.80 M, 285 k."""
    size, unit = _size(value)
    scaled = value / size
    return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"


def _size(value: float) -> tuple[float, str]:
    return (1e6, " M") if abs(value) >= 999_500 else (1e3, " k") if abs(value) >= 999.5 else (1.0, "")


def _legend(axes: Axes) -> None:
    """Place the legend above the plot, where it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=4,
        frameon=False,
        fontsize=9.5,
        handlelength=2.8,
        columnspacing=1.6,
        borderpad=0.2,
    )


def _load_line(suite: SuiteResult, which: Literal["median", "together", "last"], *varied: str) -> str:
    """Describe the load, as far as it is the same for all cases, and the runs of the chart.

    Args:
        suite: The suite of the chart.
        which: The runs that the chart shows.
        varied: Parts of the load that the chart itself shows.
    """
    load, runs = suite.load, len(suite.cases[0].runs)
    values = {
        "format": {one.load.format for one in suite.runs},
        "records per body": {plural(one.load.records_per_body, "record") + " per body" for one in suite.runs},
        "connections": {plural(one.load.connections, "connection") for one in suite.runs},
        "rate": {f"{_three_digits(one.load.records_per_second)} records/s" for one in suite.runs},
    }
    if not load.records_per_second:
        del values["rate"]
    sent = ", ".join(texts.pop() for name, texts in values.items() if name not in varied and len(texts) == 1)
    how_often = {
        "median": f"median of {runs} runs of {load.seconds:g} s, thin line: from worst to best",
        "together": f"{runs} runs of {load.seconds:g} s together",
        "last": f"the last of {runs} runs of {load.seconds:g} s",
    }
    return f"{sent}; " + (how_often[which] if runs > 1 else f"one run of {load.seconds:g} s")


def _machine_line(machine: Machine) -> str:
    disk = f", {machine.file_system} on {machine.device}" if machine.file_system else ""
    return (
        f"arcpipe {machine.arcpipe}, {machine.python}; {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, {machine.kernel}{disk}"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
