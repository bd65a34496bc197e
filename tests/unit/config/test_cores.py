"""The cores of a process whose cgroup has a quota: directories as the kernel shows them, in all their places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcpipe.config import cores
from arcpipe.config.settings import Server

ALL = len(os.sched_getaffinity(0))


class Machine:
    """The view of a process in /proc and the mounted cgroups."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.mounted = directory / "cgroup"
        self.proc.mkdir()
        self.mounted.mkdir()

    def is_in(self, cgroup: str, root: str = "/") -> None:
        """Version 2: the process's cgroup, and the one whose directory is mounted."""
        (self.proc / "cgroup").write_text(f"0::{cgroup}\n")
        (self.proc / "mountinfo").write_text(
            "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
            f"30 21 0:26 {root} {self.mounted} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        )

    def limit(self, where: str, value: str) -> None:
        path = self.mounted / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1.0), ("50000 100000", 0.5), ("150000 100000", 1.5), ("max 100000", None), ("max", None)],
)
def test_the_quota_of_a_container_is_that_of_its_own_root(machine: Machine, quota: str, expected: float | None) -> None:
    machine.is_in("/")
    machine.limit("cpu.max", quota)
    assert cores.cpu_quota(machine.proc) == expected
    found = cores.available(machine.proc)
    assert found.number == (min(ALL, {1.0: 1, 0.5: 1, 1.5: 2}[expected]) if expected else ALL)
    assert found.problem == ""
    if expected and expected < ALL:
        assert found.reason == f"the CPU quota of the cgroup is {expected:g} cores"


def test_the_lowest_quota_of_all_cgroups_above_counts(machine: Machine) -> None:
    machine.is_in("/system.slice/arcpipe.service")
    machine.limit("system.slice/arcpipe.service/cpu.max", "300000 100000")
    assert cores.cpu_quota(machine.proc) == 3
    machine.limit("system.slice/cpu.max", "120000 100000")
    assert cores.cpu_quota(machine.proc) == 1.2
    machine.limit("system.slice/cpu.max", "max 100000")
    assert cores.cpu_quota(machine.proc) == 3


@pytest.mark.parametrize("cgroup", ["/kubepods/pod1/c1", "/../../elsewhere", "/other"])
def test_a_container_in_the_hosts_namespace_finds_its_cgroup(machine: Machine, cgroup: str) -> None:
    """A container without a namespace of its own sees its cgroup mounted."""
    machine.is_in(cgroup, root="/kubepods/pod1/c1")
    machine.limit("cpu.max", "70000 100000")
    assert cores.cpu_quota(machine.proc) == 0.7


def test_the_quota_of_version_1_counts_too(machine: Machine) -> None:
    (machine.proc / "cgroup").write_text("5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n")
    (machine.proc / "mountinfo").write_text(
        f"33 21 0:29 /docker/x {machine.mounted} ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
        f"34 21 0:30 / {machine.mounted}/no rw - cgroup cgroup rw,memory\n"
    )
    machine.limit("cpu.cfs_quota_us", "-1\n")
    machine.limit("cpu.cfs_period_us", "100000\n")
    assert cores.cpu_quota(machine.proc) is None
    machine.limit("cpu.cfs_quota_us", "250000\n")
    assert cores.cpu_quota(machine.proc) == 2.5


def test_a_machine_without_cgroups_has_no_quota(machine: Machine) -> None:
    assert cores.cpu_quota(machine.proc) is None
    (machine.proc / "cgroup").write_text("0::/\n")  # and nothing is mounted
    assert cores.available(machine.proc) == (ALL, "one for each core that they may run on", "")


def test_a_quota_that_cannot_be_read_is_a_problem_and_not_none(machine: Machine) -> None:
    machine.is_in("/")
    (machine.mounted / "cpu.max").mkdir()
    found = cores.available(machine.proc)
    assert found.number == ALL
    assert found.problem == f"{machine.mounted}/cpu.max: Is a directory"


def test_there_are_as_many_workers_as_cores(machine: Machine) -> None:
    assert Server(workers=0).worker_count() == cores.available().number
    assert Server(workers=3).worker_count() == 3
