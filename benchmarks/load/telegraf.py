"""Lines as Telegraf's inputs send them: 13 measurements of 16 shapes for each host.

Names, tags and fields are those of Telegraf's inputs. Times are left out; `benchmarks.load.bodies` appends them.
"""

from __future__ import annotations

import random
from typing import Final

HOSTS: Final = 100
REGIONS: Final = ("us-east", "us-west", "eu-west-1", "eu-north", "ap-south")

_CPU: Final = (
    "usage_guest usage_guest_nice usage_idle usage_iowait usage_irq usage_nice usage_softirq usage_steal usage_system "
    "usage_user"
)
_MEM: Final = "active available buffered cached commit_limit committed_as dirty free high_free inactive"
_MORE_MEM: Final = "mapped page_tables shared slab sreclaimable sunreclaim swap_cached total used vmalloc_used"
_NET: Final = "bytes_recv bytes_sent drop_in drop_out err_in err_out packets_recv packets_sent"
_NETSTAT: Final = "tcp_close tcp_close_wait tcp_established tcp_listen tcp_syn_sent tcp_time_wait udp_socket"
_PROCESSES: Final = "blocked dead idle paging running sleeping stopped total total_threads unknown zombies"


def gather(source: random.Random) -> list[str]:
    """Return the lines that Telegraf gathers from a host at a time, without their times."""
    gathering = _Gathering(source)
    return [*gathering.devices(), *gathering.services(), *gathering.system()]


class _Gathering:
    """One host at one moment. The lines take random numbers in the order in which they are sent."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._host = f"host=server-{source.randrange(HOSTS)}"
        self._uptime = f"{source.randrange(99)} days, {source.randrange(24):2}:{source.randrange(60):02}"

    def devices(self) -> list[str]:
        """Return the lines of processors and disks."""
        return [
            *(f"cpu,cpu=cpu{cpu},{self._host} {self._floats(_CPU)}" for cpu in (0, 1, 2, 3, "-total")),
            self._disk("sda1", "/"),
            self._disk("sda2", "/home"),
            self._disk("sdb1", "/var/lib/data\\ base"),
            *map(self._disk_traffic, ("sda", "sda1", "sdb")),
        ]

    def services(self) -> list[str]:
        """Return the lines of containers and HTTP checks."""
        return [*map(self._container, ("api", "worker", "cache")), *map(self._response, ("api", "web"))]

    def system(self) -> list[str]:
        """Return the lines of the kernel, memory, network, processes and units."""
        host, integers, floats, source = self._host, self._integers, self._floats, self._source
        return [
            f"kernel,{host} {integers('boot_time context_switches entropy_avail interrupts processes_forked')}",
            f"mem,{host} {integers(_MEM)},{floats('available_percent used_percent')},{integers(_MORE_MEM)}",
            f"net,{host},interface=eth0 {integers(_NET)}",
            f"netstat,{host} {integers(_NETSTAT)}",
            f"processes,{host} {integers(_PROCESSES)}",
            f"swap,{host} {integers('free total used')},{floats('used_percent')}",
            f"swap,{host} {integers('in out')}",
            f"system,{host} {floats('load1 load15 load5')},n_cpus=4i,n_users=0i",
            f"system,{host} uptime={source.randrange(10**7)}i",
            f'system,{host} uptime_format="{self._uptime}"',
            f"systemd_units,active=active,{host},load=loaded,name=app\\,{source.choice(REGIONS)}.service,sub=running "
            "active_code=0i,load_code=0i,sub_code=0i",
        ]

    def _disk(self, device: str, path: str) -> str:
        return (
            f"disk,device={device},fstype=ext4,{self._host},mode=rw,path={path} "
            f"{self._integers('free inodes_free inodes_total inodes_used total used')},"
            f"{self._floats('inodes_used_percent used_percent')}"
        )

    def _disk_traffic(self, name: str) -> str:
        return (
            f"diskio,{self._host},name={name} "
            f"{self._integers('io_time iops_in_progress merged_reads merged_writes read_bytes read_time reads')},"
            f"{self._integers('weighted_io_time write_bytes write_time writes')}"
        )

    def _container(self, name: str) -> str:
        return (
            f"docker_container_cpu,container_image=registry.example/team/{name},container_name={name},"
            f"container_status=running,container_version=1.{self._source.randrange(30)},cpu=cpu-total,"
            f"engine_host=docker,{self._host},server_version=27.3.1 "
            f"{self._integers('throttling_periods usage_in_kernelmode usage_system usage_total')},"
            f'{self._floats("usage_percent")},container_id="{self._source.getrandbits(256):064x}"'
        )

    def _response(self, name: str) -> str:
        return (
            f"http_response,{self._host},method=GET,result=success,server=http://{name}.example:8080/health,"
            f"status_code=200 content_length={self._source.randrange(9999)}i,http_response_code=200i,"
            f'{self._floats("response_time")},result_code=0i,result_type="success"'
        )

    def _integers(self, names: str) -> str:
        source = self._source
        return ",".join(f"{name}={source.randrange(10 ** source.randrange(1, 13))}i" for name in names.split())

    def _floats(self, names: str) -> str:
        # Many of Telegraf's floats are 0 most of the time.
        source = self._source
        return ",".join(f"{name}={source.random() * 100 if source.random() < 0.7 else 0}" for name in names.split())
