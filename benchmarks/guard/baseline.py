"""The arithmetic of the guard: pairs of costs become a ratio, and a ratio is held against its baseline.

A cost is CPU time, because other programs change the time on a clock. A ratio compares it with a reference of a similar
kind that takes turns with it, so most of a machine's speed cancels out. What does not is in the bounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from benchmarks.system.machine import Machine

# Part of a ratio above its baseline that counts as slower: on a machine like that of the baseline, and on another one.
TOLERANCE: Final = 0.08
OTHER_MACHINE_TOLERANCE: Final = 0.25
# A bound is at least this many times the range of the ratios that were recorded.
_SPREADS: Final = 2.0
# Part by which a reference may cost more or less than in the baseline. Beyond, the machine is another one, whatever its
# processor is called: those of a cloud have one name, and are as fast as their host allows.
_SAME_SPEED: Final = 0.15


class GuardFailed(Exception):
    """There is no figure; the text says why and what to do."""


class Pair(NamedTuple):
    """CPU time, in µs of a unit of the case, of the part and of its reference, one right after the other."""

    cost_us: float
    reference_us: float


class Measured(msgspec.Struct, frozen=True):
    """A case as one run found it: the least costs of its rounds, because noise only adds to a cost."""

    case: str
    reference: str
    unit: str
    cost_us: float
    reference_us: float
    ratio: float


class Recorded(msgspec.Struct, frozen=True):
    """A case of the baseline. `spread` is the range of the recorded ratios, as a part of their median."""

    case: str
    reference: str
    unit: str
    cost_us: float
    reference_us: float
    ratio: float
    spread: float


class Baseline(msgspec.Struct, frozen=True):
    """Ratios that later runs are compared with, and the machine that they were recorded on."""

    recorded_at: str
    repeats: int
    machine: Machine
    cases: list[Recorded]
    has_kernel: bool = False  # whether arcpipe's native kernel was in use


class Verdict(NamedTuple):
    """A case, held against its baseline; without one, `bound` is None."""

    measured: Measured
    baseline: float | None
    bound: float | None

    @property
    def is_slower(self) -> bool:
        """Tell whether the ratio is above its bound."""
        return self.bound is not None and self.measured.ratio > self.bound

    @property
    def word(self) -> str:
        """Return the verdict in a word or two."""
        if self.bound is None:
            return "no baseline"
        return "slower" if self.is_slower else "ok"


def summary(case: str, reference: str, unit: str, pairs: Sequence[Pair]) -> Measured:
    """Return the least costs of a case, and their ratio.

    Raises:
        GuardFailed: There is no pair, or a cost is not above 0.
    """
    if not pairs or min(min(pair) for pair in pairs) <= 0:
        raise GuardFailed(f"{case}: no CPU time was measured in {len(pairs)} rounds; run it with more of them (--runs)")
    cost = min(pair.cost_us for pair in pairs)
    reference_cost = min(pair.reference_us for pair in pairs)
    return Measured(case, reference, unit, cost, reference_cost, cost / reference_cost)


def lower(first: Mapping[str, Measured], second: Mapping[str, Measured]) -> dict[str, Measured]:
    """Return each case as the run with the lower ratio found it: noise hardly makes one faster."""
    chosen = dict(first)
    for case, measured in second.items():
        if case not in chosen or measured.ratio < chosen[case].ratio:
            chosen[case] = measured
    return chosen


def recorded(repeats: Sequence[Mapping[str, Measured]]) -> list[Recorded]:
    """Make the cases of a baseline from several whole measurements."""
    cases = []
    for case, first in repeats[0].items():
        ratios = [one[case].ratio for one in repeats]
        ratio = statistics.median(ratios)
        spread = (max(ratios) - min(ratios)) / ratio
        cost, reference = (
            statistics.median(getattr(one[case], field) for one in repeats) for field in ("cost_us", "reference_us")
        )
        cases.append(Recorded(case, first.reference, first.unit, cost, reference, ratio, spread))
    return cases


def is_alike(one: Machine, other: Machine) -> bool:
    """Tell whether ratios of two machines differ by noise alone: processor, Python and libraries are the same."""
    return (one.cpu, one.python, one.packages) == (other.cpu, other.python, other.packages)


def judge(measured: Iterable[Measured], baseline: Baseline, machine: Machine) -> list[Verdict]:
    """Hold each case against the baseline."""
    alike = is_alike(machine, baseline.machine)
    known = {(one.case, one.reference): one for one in baseline.cases}
    verdicts = []
    for one in measured:
        base = known.get((one.case, one.reference))
        if base is None:
            verdicts.append(Verdict(one, None, None))
            continue
        is_as_fast = abs(one.reference_us / base.reference_us - 1) <= _SAME_SPEED
        least = TOLERANCE if alike and is_as_fast else OTHER_MACHINE_TOLERANCE
        verdicts.append(Verdict(one, base.ratio, base.ratio * (1 + max(least, _SPREADS * base.spread))))
    return verdicts


def read_baseline(path: Path, has_kernel: bool) -> Baseline:
    """Read a baseline.

    Args:
        path: of the file.
        has_kernel: whether the native kernel is in use now.

    Raises:
        GuardFailed: the file is missing, or holds no baseline. Or only one of baseline and run has the kernel.
    """
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Baseline)
    except FileNotFoundError:
        raise GuardFailed(f"there is no baseline {path}: record one with --guard --record") from None
    except (OSError, msgspec.DecodeError) as error:
        raise GuardFailed(f"{path} is no baseline ({error}): record one with --guard --record") from None
    if known.has_kernel != has_kernel:
        was, present = ("with" if one else "without" for one in (known.has_kernel, has_kernel))
        raise GuardFailed(
            f"{path} was recorded {was} the native kernel, and this run is {present} it: leave --baseline out, or "
            "record one with --guard --record"
        )
    return known
