"""The number of cores for this process: those that it may run on, or fewer if a cgroup limits its CPU time.

With a quota of CPU time (Kubernetes' `limits.cpu`, systemd's `CPUQuota=`) a process still sees all cores of the
machine. The quota is in `cpu.max` (cgroups version 2), or in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (version 1),
of the process's own cgroup and of all above it (cgroups(7)). The lowest quota counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc/self")


class Cores(NamedTuple):
    """A number of cores, at least 1, and the reason for it; `problem` says why the quota cannot be read."""

    number: int
    reason: str
    problem: str = ""


def available(proc: Path = _PROC) -> Cores:
    """Return the number of cores to use. A part of a core counts as one.

    Args:
        proc: this process's directory in /proc, for tests.
    """
    runnable = len(os.sched_getaffinity(0))
    all_of_them = "one for each core that they may run on"
    try:
        quota = cpu_quota(proc)
    except OSError as error:
        return Cores(runnable, all_of_them, f"{error.filename or proc}: {error.strerror or error}")
    if quota is not None and quota < runnable:
        return Cores(max(1, math.ceil(quota)), f"the CPU quota of the cgroup is {quota:g} cores")
    return Cores(runnable, all_of_them)


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return the lowest CPU quota of this process's cgroups, in cores; None if there is no quota.

    Raises:
        OSError: a file that may hold a quota cannot be read.
    """
    quotas = [quota for folder, is_unified in _folders(proc) if (quota := _quota_of(folder, is_unified)) is not None]
    return min(quotas, default=None)


def _folders(proc: Path) -> Iterator[tuple[Path, bool]]:
    """Return the directories of the process's cgroup and those above it, and whether each is of version 2."""
    groups = _read(proc / "cgroup")
    mounts = list(_mounts(_read(proc / "mountinfo") or ""))
    for line in (groups or "").splitlines():
        number, controllers, path = line.split(":", 2)
        is_unified = number == "0" and not controllers
        if not is_unified and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.is_unified == is_unified and (is_unified or "cpu" in mount.options):
                below = _below(path, mount.root)
                for depth in range(len(below), -1, -1):
                    yield mount.point.joinpath(*below[:depth]), is_unified


class _Mount(NamedTuple):
    point: Path
    root: str  # the cgroup that is seen there
    is_unified: bool
    options: list[str]


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        mounted, _, described = line.partition(" - ")
        kind, *_, options = described.split(" ")
        if kind in ("cgroup", "cgroup2"):
            root, point = mounted.split(" ")[3:5]
            yield _Mount(Path(point), root, kind == "cgroup2", options.split(","))


def _below(path: str, root: str) -> tuple[str, ...]:
    """Return the parts of a cgroup's path below the mounted one; none if it is outside of that."""
    try:
        parts = Path(path).relative_to(root).parts
    except ValueError:
        return ()
    return () if ".." in parts else parts


def _quota_of(folder: Path, is_unified: bool) -> float | None:
    if is_unified:
        quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    else:
        quota, period = (_read(folder / f"cpu.cfs_{name}_us") or "-1" for name in ("quota", "period"))
    try:
        cores = int(quota) / int(period)
    except ValueError:  # "max"
        return None
    return cores if cores > 0 else None


def _read(path: Path) -> str | None:
    """Return the content of a kernel's file; None if there is none, so that nothing is limited."""
    try:
        return path.read_text("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
