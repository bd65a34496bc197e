"""The machine that figures were measured on: they mean little without it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.system.children import ROOT

_PACKAGES: Final = ("uvloop", "httptools", "msgspec", "msgpack", "isal", "numpy", "pyarrow")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_IN_MEMORY: Final = ("tmpfs", "ramfs")


class Machine(msgspec.Struct, frozen=True):
    """The machine, the disk that holds the data directory, and the versions of arcpipe, Python and libraries."""

    cpu: str
    cores: int  # that the harness, and so the server, may use
    memory_bytes: int
    kernel: str
    file_system: str
    mount_options: str
    device: str
    device_write_cache: str  # "write back": a sync has to flush it; "" if unknown
    python: str
    arcpipe: str
    packages: dict[str, str]
    load_average: float  # over one minute, before the first run


def describe(data_directory: Path | None) -> Machine:
    """Describe this machine, and the file system that holds `data_directory` if it is given."""
    kind, options, device, number = _mount(data_directory) if data_directory else ("", "", "", "")
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=kind,
        mount_options=options,
        device=device,
        device_write_cache=_write_cache(number) if number else "",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        arcpipe=_arcpipe_version(),
        packages={name: version(name) for name in _PACKAGES},
        load_average=os.getloadavg()[0],
    )


def is_in_memory(directory: Path) -> bool:
    """Tell whether a directory is in memory, where a sync costs nothing and proves nothing."""
    return _mount(directory)[0] in _IN_MEMORY


class CPUTime:
    """CPU seconds of all cores since boot, from /proc/stat: the use of all programs on the machine."""

    def __init__(self) -> None:
        """Read the present values."""
        fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = fields[:8]
        self.busy_seconds = (user + nice + system + irq + softirq) / _TICKS_PER_SECOND
        self.stolen_seconds = steal / _TICKS_PER_SECOND


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _mount(directory: Path) -> tuple[str, str, str, str]:
    """Return file system, mount options, device and major:minor number of a directory that may not exist yet.

    From proc_pid_mountinfo(5).
    """
    resolved = str(directory.resolve())
    best = ("", "", "", "")
    longest = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        number, point, options = (mount.split()[index] for index in (2, 4, 5))
        kind, device, *_ = source.split()
        point = point.encode("ascii", "surrogateescape").decode("unicode_escape")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            longest = len(point)
            best = (kind, options, device, number)
    return best


def _write_cache(number: str) -> str:
    block = Path(f"/sys/dev/block/{number}").resolve()
    for device in (block, block.parent):  # a partition has its queue at the disk above it
        path = device / "queue" / "write_cache"
        if path.exists():
            return path.read_text().strip()
    return ""


def _arcpipe_version() -> str:
    """Return the version, the commit if the source tree is a repository, and whether the native kernel is in use."""
    from arcpipe import __version__
    from arcpipe.native import KERNEL

    kernel = "" if KERNEL is None else ", with its native kernel"
    try:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{__version__}{kernel}"
    return f"{__version__} ({commit}){kernel}"
