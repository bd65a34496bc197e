"""How to start the program under test: its command, and an environment without anyone's settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "arcpipe"]


def environment(**settings: object) -> dict[str, str]:
    """Return this process's environment without arcpipe's settings, plus `wal_dir=…` as ARCPIPE_WAL_DIR and so on."""
    ours = ("ARCPIPE_", "WAL_", "WRITE_BUFFER_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept.pop("WORKERS", None)
    values = {
        f"ARCPIPE_{name.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in settings.items()
    }
    return kept | {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"} | values


# As Kubernetes 1.32 makes them for a Service with a port called http; Docker's links look the same.
def service_variables(name: str, ports: str = "8000") -> dict[str, str]:
    address, url = "10.96.0.11", f"tcp://10.96.0.11:{ports}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": ports,
        f"{name}_SERVICE_PORT_HTTP": ports,
        f"{name}_PORT": url,
        f"{name}_PORT_{ports}_TCP": url,
        f"{name}_PORT_{ports}_TCP_PROTO": "tcp",
        f"{name}_PORT_{ports}_TCP_PORT": ports,
        f"{name}_PORT_{ports}_TCP_ADDR": address,
    }
