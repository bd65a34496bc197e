"""A server that already runs, arcpipe or a peer, under the same load as the harness's own.

Before the load, `probe` creates the database where the protocol has a way to, sends one request, and turns whatever is
wrong into what to do about it. What such a server acknowledged cannot be looked for in its storage: its runs say so by
`parquet_records` None.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from benchmarks.load.bodies import FORMATS, make_bodies
from benchmarks.load.drive import Figures, LoadProcesses, load_processes, load_spec
from benchmarks.load.generator import Finished
from benchmarks.report.progress import Status
from benchmarks.results.model import LoadOptions, ProcessResult, Run
from benchmarks.system.listeners import processes_at
from benchmarks.system.server import ProcessUse, process_use
from benchmarks.system.usage import Usage

_PROBE_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.5
_TEXT_CHARACTERS: Final = 300
_NO_SUCH_PATH: Final = (404, 405, 501)
_TARGET: Final = re.compile(r"(?:([^=/?]+)=)?(https?://.*)", re.DOTALL)


class TargetFailed(Exception):
    """The target cannot be measured; the text says why and what to do next."""


class Protocol(NamedTuple):
    """How a kind of server is written to."""

    path: str  # with places for database and organisation
    kinds: tuple[str, ...]  # of the harness's bodies; the first is the usual one
    scheme: str  # of Authorization
    version: str  # what X-Influxdb-Version begins with
    container: str  # what has to be there before it can be written to
    older_path: str = ""  # of releases that do not have `path`


_LINES: Final = ("line protocol", "telegraf")

PROTOCOLS: Final = {
    "influx1": Protocol("/write?db={database}", _LINES, "Basic", "1.", "database"),
    "influx2": Protocol("/api/v2/write?org={org}&bucket={database}&precision=ns", _LINES, "Token", "2.", "bucket"),
    "influx3": Protocol("/api/v3/write_lp?db={database}&precision=nanosecond", _LINES, "Bearer", "3.", "database"),
    "arc": Protocol("/api/v1/write/msgpack", ("columnar", "rows"), "Bearer", "-", "database", "/write/v2/msgpack"),
}


class Target(NamedTuple):
    """Where the load goes."""

    name: str
    tls: bool
    host: str
    port: int
    prefix: str  # of all paths: "" or "/…" without a slash at the end
    protocol: str
    database: str
    org: str
    token: str
    is_old: bool = False  # it has the protocol's older path only

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def path(self) -> str:
        """Of the requests of the load, with its query."""
        protocol = PROTOCOLS[self.protocol]
        path = protocol.older_path if self.is_old else protocol.path
        return self.prefix + path.format(database=quote(self.database, safe=""), org=quote(self.org, safe=""))

    @property
    def headers(self) -> dict[str, str]:
        """Of each request, beside those that the body needs."""
        headers = {"x-arc-database": self.database} if self.protocol == "arc" else {}
        if self.token:
            scheme = PROTOCOLS[self.protocol].scheme
            value = base64.b64encode(self.token.encode()).decode("ascii") if scheme == "Basic" else self.token
            headers["Authorization"] = f"{scheme} {value}"
        return headers


def parse_target(text: str, protocol: str, database: str, org: str, token: str) -> Target:
    """A target from `URL` or `NAME=URL`.

    Raises:
        ValueError: it is not a URL of http or https, or the token does not suit the protocol.
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
    urls: list[str], protocols: list[str], formats: list[str], database: str, org: str, token: str
) -> tuple[list[Target], list[str]]:
    """The targets, and the formats that they are to be sent.

    Raises:
        ValueError: what is asked for does not go together.
    """
    if len(protocols) not in (1, len(urls)):
        raise ValueError(f"--protocol says how to write to --target: give one of {', '.join(PROTOCOLS)}")
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    each = protocols * len(urls) if len(protocols) == 1 else protocols
    targets = [parse_target(url, one, database, org, token) for url, one in zip(urls, each, strict=True)]
    if len({target.name for target in targets}) < len(targets):
        raise ValueError("give each --target a name of its own: NAME=URL")
    spoken = ", ".join(dict.fromkeys(protocols))
    kinds = [name for name in PROTOCOLS[protocols[0]].kinds if all(name in PROTOCOLS[one].kinds for one in protocols)]
    if not kinds:
        raise ValueError(f"no format is taken by all of {spoken}")
    taken = [name for name in FORMATS if name.partition(" + ")[0] in kinds]
    for name in formats:
        if name not in taken:
            raise ValueError(f"--format {name!r}: for {spoken} there are {', '.join(taken)}")
    return targets, formats or kinds[:1]


def probe(target: Target, format: str, records: int) -> tuple[Target, str]:
    """Makes sure that the load would be taken; returns the target with what was learnt of it, and what the server says
    that it is ("" if it does not).

    It creates the database where that is a request of the protocol (influx1), and writes one body.

    Raises:
        TargetFailed: it would not be taken.
    """
    ping = _exchange(target, "GET", f"{target.prefix}/ping", b"", {})
    version, build = ping.headers.get("x-influxdb-version", ""), ping.headers.get("x-influxdb-build", "")
    if target.protocol == "influx1":
        query = urlencode({"q": f'CREATE DATABASE "{target.database}"'}).encode("ascii")
        path = f"{target.prefix}/query"
        answer = _exchange(target, "POST", path, query, {"Content-Type": "application/x-www-form-urlencoded"})
        _check(target, f"POST {path} (CREATE DATABASE)", answer, version)
        if error := _influx_error(answer.text):
            raise TargetFailed(
                f"{target.url} does not create the database {target.database!r}: {error}. Create it there, or name one "
                "that exists with --database"
            )
    body = make_bodies(format, records, seed=1)[0]
    content = body.at(time.time_ns() // 1000)
    headers = {"Content-Type": body.content_type}
    if body.content_encoding:
        headers["Content-Encoding"] = body.content_encoding
    answer = _exchange(target, "POST", target.path, content, headers)
    if answer.status in _NO_SUCH_PATH and PROTOCOLS[target.protocol].older_path:
        older = target._replace(is_old=True)
        answer_to_older = _exchange(older, "POST", older.path, content, headers)
        if answer_to_older.status not in _NO_SUCH_PATH:
            target, answer = older, answer_to_older
    _check(target, f"POST {target.path.partition('?')[0]}", answer, version)
    return target, f"InfluxDB API {version}{build and f' ({build})'}" if version else ""


async def run_target(target: Target, round_number: int, load: LoadOptions, status: Status) -> Run:
    """One run of the load.

    Raises:
        LoadFailed: there is no figure.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    spec = load_spec(
        load,
        target.host,
        target.port,
        headers=target.headers,
        tls=target.tls,
        path=target.path,
        verify_certificate=True,
    )
    async with load_processes(spec, load.load_processes) as generators:
        server = _Processes(processes_at(target.host, target.port))
        usage = Usage(server.use, generators.pids)
        figures = Figures.of(await _follow(generators, usage, load, status))
    return Run(
        case=target.name,
        round=round_number,
        load=load,
        started_at=started_at,
        workers=0,
        seconds=load.seconds,
        requests_per_second=figures.requests_per_second,
        records_per_second=figures.requests_per_second * load.records_per_body,
        body_bytes_per_second=figures.requests_per_second * generators.body_bytes,
        latency=figures.latency,
        acknowledged_records=figures.acknowledged_requests * load.records_per_body,
        parquet_records=None,
        drain_seconds=0.0,
        to_parquet=None,
        processes=[
            ProcessResult(use.name, use.peak_rss_bytes, usage.server_cores.get(pid, 0.0))
            for pid, use in sorted(server.last.items())
        ],
        load_cores=figures.cores,
        other_cores=usage.other_cores,
        stolen_cores=usage.stolen_cores,
        complaints=[],
        samples=[],
    )


class _Processes:
    """The server's processes, as far as they are on this machine."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.last: dict[int, ProcessUse] = {}

    def use(self) -> dict[int, ProcessUse]:
        uses = {pid: use for pid in self._pids if (use := process_use(pid)) is not None}
        self.last.update(uses)
        return uses


async def _follow(generators: LoadProcesses, usage: Usage, load: LoadOptions, status: Status) -> list[Finished]:
    """The load from the first request to the last answer."""
    started = time.perf_counter()
    work = asyncio.create_task(generators.run())
    window_end = load.warmup_seconds + load.seconds
    try:
        while not work.done():
            elapsed = time.perf_counter() - started
            if elapsed >= load.warmup_seconds and not usage.is_open:
                usage.open()
            if elapsed >= window_end and not usage.is_closed:
                usage.close()
            status(
                f"{'warming up' if elapsed < load.warmup_seconds else 'loading'}, {elapsed:.0f} of {window_end:g} s, "
                f"{generators.acknowledged_records / 1e6:.2f} M records acknowledged"
            )
            edges = [edge - elapsed for edge in (load.warmup_seconds, window_end) if edge > elapsed]
            await asyncio.wait([work], timeout=min([*edges, _TICK_SECONDS]))
        finished = await work
    finally:
        work.cancel()
        with suppress(BaseException):
            await work
    if not usage.is_closed:
        usage.close()
    return finished


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    text: str


def _exchange(target: Target, method: str, path: str, body: bytes, headers: dict[str, str]) -> _Answer:
    """One request on a connection of its own.

    Raises:
        TargetFailed: there is no answer.
    """
    if target.tls:
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            target.host, target.port, timeout=_PROBE_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=_PROBE_SECONDS)
    try:
        connection.request(method, path, body, {**target.headers, **headers})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace").strip()
        return _Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
    except ssl.SSLCertVerificationError as error:
        raise TargetFailed(
            f"{target.url} has a certificate that is not trusted ({error.verify_message}): point the environment's "
            "SSL_CERT_FILE at it or its authority, and use the name that it is for"
        ) from None
    except ssl.SSLError as error:
        raise TargetFailed(
            f"{target.url} does not speak TLS as it should ({error.reason or error}): is it http:// there?"
        ) from None
    except TimeoutError:
        raise TargetFailed(
            f"{target.url} gives no answer to {method} {path} within {_PROBE_SECONDS:g} s: is it the right host and "
            "port, and is the server well?"
        ) from None
    # Before OSError: a server that hangs up is a ConnectionResetError and this, too.
    except http.client.HTTPException as error:
        raise TargetFailed(
            f"{target.url} does not answer in HTTP ({type(error).__name__}): is it https:// there, or another port?"
        ) from None
    except OSError as error:
        raise TargetFailed(
            f"there is no server at {target.url} ({error.strerror or error}): start it, or correct host and port"
        ) from None
    finally:
        connection.close()


def _check(target: Target, request: str, answer: _Answer, version: str) -> None:
    """Raises TargetFailed with what to do, unless the answer is good."""
    if 200 <= answer.status < 300:
        return
    protocol = PROTOCOLS[target.protocol]
    said = f"{target.url} answers {request} with HTTP {answer.status}"
    if answer.text:
        said += f" ({' '.join(answer.text.split())[:_TEXT_CHARACTERS]})"
    names_container = re.search(rf"{protocol.container}|database|organi[sz]ation", answer.text, re.IGNORECASE)
    if 300 <= answer.status < 400:
        advice = f"it moved to {answer.headers.get('location', 'somewhere else')}: give the URL that it moved to"
    elif answer.status == 401 and target.token:
        advice = f"it does not take this token, sent as {protocol.scheme}: give one that may write with --token"
    elif answer.status == 401:
        form = "USER:PASSWORD" if protocol.scheme == "Basic" else "TOKEN"
        advice = f"it asks who writes: add --token {form}"
    elif answer.status == 403:
        advice = f"this token may not write to the {protocol.container} {target.database!r}: use one that may"
    elif answer.status == 404 and names_container:
        advice = f"create the {protocol.container} {target.database!r} there, or name one that exists with --database"
        if "{org}" in protocol.path:
            advice += f"; the organisation is {target.org!r} (--org)"
    elif answer.status in (*_NO_SUCH_PATH, 415):
        advice = f"it does not speak {target.protocol}: choose another --protocol"
        likely = [name for name, other in PROTOCOLS.items() if version.lstrip("v").startswith(other.version)]
        if target.prefix and target.protocol in (likely or [target.protocol]):
            advice = f"is {target.prefix} right in the URL?"
        elif likely and likely[0] != target.protocol:
            advice = f"it does not speak {target.protocol}; by its /ping it is {version}: try --protocol {likely[0]}"
    elif answer.status == 413:
        advice = "its limit for a body is lower: send less with --records"
    elif answer.status == 400:
        advice = f"it speaks something else than {target.protocol}, or does not take these records"
    else:
        advice = "see its log, and try again when it is well"
    raise TargetFailed(f"{said}: {advice}")


def _influx_error(text: str) -> str:
    """The error in an answer 200 of InfluxDB 1 to a query; "" if there is none."""
    try:
        results = json.loads(text).get("results") or [{}]
        return str(results[0].get("error", ""))
    except (ValueError, AttributeError, TypeError, LookupError):
        return ""
