"""Protocols to write to other servers, and targets: servers that already run."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from benchmarks.load.bodies import FORMATS

_TARGET: Final = re.compile(r"(?:([^=/?]+)=)?(https?://.*)", re.DOTALL)


class Protocol(NamedTuple):
    """The requests to write to a kind of server."""

    path: str  # with places for database, organisation and OpenTelemetry's signal
    kinds: tuple[str, ...]  # of bodies that it takes; the first is the usual one
    scheme: str  # of Authorization
    version: str  # beginning of X-Influxdb-Version
    container: str  # word for the thing that must exist before a write
    older_path: str = ""  # of releases without `path`


_LINES: Final = ("line protocol", "telegraf")
# `--format` of this name stands for all that the protocols take, without those that are compressed.
ALL_FORMATS: Final = "all"

PROTOCOLS: Final = {
    "influx1": Protocol("/write?db={database}", _LINES, "Basic", "1.", "database"),
    "influx2": Protocol("/api/v2/write?org={org}&bucket={database}&precision=ns", _LINES, "Token", "2.", "bucket"),
    "influx3": Protocol("/api/v3/write_lp?db={database}&precision=nanosecond", _LINES, "Bearer", "3.", "database"),
    "arc": Protocol("/api/v1/write/msgpack", ("columnar", "rows"), "Bearer", "-", "database", "/write/v2/msgpack"),
    "ingest": Protocol(
        "/api/v1/ingest/cpu?db={database}&tag_fields=host,region",
        ("ndjson", "json", "csv", "arrow"),
        "Bearer",
        "-",
        "database",
    ),
    "prometheus": Protocol("/api/v1/write?db={database}", ("remote write",), "Bearer", "-", "database"),
    "otlp": Protocol(
        "/v1/{signal}?db={database}", ("otlp metrics", "otlp logs", "otlp traces"), "Bearer", "-", "database"
    ),
}


class Target(NamedTuple):
    """A server that already runs, and the place to write to in it."""

    name: str
    tls: bool
    host: str
    port: int
    prefix: str  # of all paths: "" or "/…" without a slash at the end
    protocol: str
    database: str
    org: str
    token: str
    is_old: bool = False  # it has only the older path of the protocol
    format: str = ""  # of the load that it gets
    command: str = ""  # starts it for its turn; "" if it runs already

    @property
    def url(self) -> str:
        """Scheme, host, port and prefix."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def path(self) -> str:
        """Path of the load's requests, with its query."""
        protocol = PROTOCOLS[self.protocol]
        path = protocol.older_path if self.is_old else protocol.path
        signal = self.format.partition(" + ")[0].removeprefix("otlp ")
        database, org = (quote(name, safe="") for name in (self.database, self.org))
        return self.prefix + path.format(database=database, org=org, signal=signal)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of each request, besides those of the body."""
        headers = {"x-arc-database": self.database} if self.protocol == "arc" else {}
        if self.token:
            scheme = PROTOCOLS[self.protocol].scheme
            value = base64.b64encode(self.token.encode()).decode("ascii") if scheme == "Basic" else self.token
            headers["Authorization"] = f"{scheme} {value}"
        return headers


def parse_target(text: str, protocol: str, database: str, org: str, token: str) -> Target:
    """Make a target from `URL` or `NAME=URL`.

    Raises:
        ValueError: The text is not a URL of http or https, or the token does not suit the protocol.
    """
    found = _TARGET.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a URL: write http://HOST:PORT or NAME=http://HOST:PORT")
    parts = urlsplit(found[2])
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{found[2]}: the port is not a number from 0 to 65535") from None
    if not parts.hostname or parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(
            f"{found[2]}: only scheme, host, port and a path that all requests begin with; --database, --org and "
            "--token say the rest"
        )
    if token and PROTOCOLS[protocol].scheme == "Basic" and ":" not in token:
        raise ValueError(f"--token for {protocol} is USER:PASSWORD (to arcpipe: any user, the token as the password)")
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    name = found[1] or f"{parts.hostname}:{port}"
    return Target(name, tls, parts.hostname, port, parts.path.rstrip("/"), protocol, database, org, token)


def plan_targets(
    urls: list[str],
    protocols: list[str],
    formats: list[str],
    database: str,
    org: str,
    token: str,
    commands: Sequence[str] = (),
) -> tuple[list[Target], list[str]]:
    """Make the targets of a command line, and choose the formats to send to them.

    Args:
        urls: `URL` or `NAME=URL` of each target.
        protocols: One for all targets, or one for each.
        formats: Formats that were asked for; the usual one of the first protocol if there are none.
        database: Database or bucket of all targets.
        org: Organisation of all targets.
        token: Token for all targets.
        commands: One for each target, to start it with; none if all of them run already.

    Raises:
        ValueError: The arguments do not fit together.
    """
    if len(protocols) not in (1, len(urls)):
        raise ValueError(f"--protocol says how to write to --target: give one of {', '.join(PROTOCOLS)}")
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if len(commands) not in (0, len(urls)):
        raise ValueError("give --command once for each --target, in the same order, or not at all")
    each = protocols * len(urls) if len(protocols) == 1 else protocols
    targets = [parse_target(url, one, database, org, token) for url, one in zip(urls, each, strict=True)]
    if len({target.name for target in targets}) < len(targets):
        raise ValueError("give each --target a name of its own: NAME=URL")
    if commands:
        targets = [target._replace(command=command) for target, command in zip(targets, commands, strict=True)]
    return targets, _chosen_formats(protocols, formats)


def _chosen_formats(protocols: list[str], formats: list[str]) -> list[str]:
    spoken = ", ".join(dict.fromkeys(protocols))
    kinds = [name for name in PROTOCOLS[protocols[0]].kinds if all(name in PROTOCOLS[one].kinds for one in protocols)]
    if not kinds:
        raise ValueError(f"no format is taken by all of {spoken}")
    if formats == [ALL_FORMATS]:
        return kinds
    taken = [name for name in FORMATS if name.partition(" + ")[0] in kinds]
    for name in formats:
        if name not in taken:
            raise ValueError(f"--format {name!r}: for {spoken} there are {', '.join(taken)} and {ALL_FORMATS}")
    return formats or kinds[:1]
