"""Make sure that a target takes the load, and say what to do if it does not."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from typing import Final, NamedTuple
from urllib.parse import urlencode

from benchmarks.load.bodies import make_bodies
from benchmarks.suites.protocols import PROTOCOLS, Protocol, Target

_PROBE_SECONDS: Final = 10.0
# Characters of an answer's text that an error quotes.
_TEXT_CHARACTERS: Final = 300
_NO_SUCH_PATH: Final = (404, 405, 501)


class TargetFailed(Exception):
    """The target cannot be measured; the text says why and what to do next."""


def probe(target: Target, format: str, records: int) -> tuple[Target, str]:
    """Make sure that a target takes the load.

    It creates the database if the protocol has a request for that (influx1), and writes one body.

    Args:
        target: The server that already runs.
        format: Format of the load.
        records: Records per body of the load.

    Returns:
        The target, corrected if it has the older path only, and the server's name and version ("" if unknown).

    Raises:
        TargetFailed: The target does not take the load.
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


def is_there(target: Target) -> bool:
    """Tell whether a server answers at the target's address, and is not just starting."""
    try:
        return _exchange(target, "GET", f"{target.prefix}/ping", b"", {}).status < 500
    except TargetFailed:
        return False


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    text: str


def _exchange(target: Target, method: str, path: str, body: bytes, headers: dict[str, str]) -> _Answer:
    """Send one request on a connection of its own.

    Raises:
        TargetFailed: There is no answer.
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
    # Before OSError: the error of a server that hangs up is a ConnectionResetError, too.
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
    """Check that an answer is good.

    Raises:
        TargetFailed: It is not; the text says what to do.
    """
    if 200 <= answer.status < 300:
        return
    said = f"{target.url} answers {request} with HTTP {answer.status}"
    if answer.text:
        said += f" ({' '.join(answer.text.split())[:_TEXT_CHARACTERS]})"
    raise TargetFailed(f"{said}: {_advice(target, answer, version)}")


def _advice(target: Target, answer: _Answer, version: str) -> str:
    protocol = PROTOCOLS[target.protocol]
    names_container = re.search(rf"{protocol.container}|database|organi[sz]ation", answer.text, re.IGNORECASE)
    if 300 <= answer.status < 400:
        return f"it moved to {answer.headers.get('location', 'somewhere else')}: give the URL that it moved to"
    if answer.status == 401:
        return _advice_on_token(target, protocol)
    if answer.status == 404 and names_container:
        advice = f"create the {protocol.container} {target.database!r} there, or name one that exists with --database"
        return advice + (f"; the organisation is {target.org!r} (--org)" if "{org}" in protocol.path else "")
    if answer.status in (*_NO_SUCH_PATH, 415):
        return _advice_on_protocol(target, version)
    return {
        400: f"it speaks something else than {target.protocol}, or does not take these records",
        403: f"this token may not write to the {protocol.container} {target.database!r}: use one that may",
        413: "its limit for a body is lower: send less with --records",
    }.get(answer.status, "see its log, and try again when it is well")


def _advice_on_token(target: Target, protocol: Protocol) -> str:
    if target.token:
        return f"it does not take this token, sent as {protocol.scheme}: give one that may write with --token"
    return f"it asks who writes: add --token {'USER:PASSWORD' if protocol.scheme == 'Basic' else 'TOKEN'}"


def _advice_on_protocol(target: Target, version: str) -> str:
    likely = [name for name, other in PROTOCOLS.items() if version.lstrip("v").startswith(other.version)]
    if target.prefix and target.protocol in (likely or [target.protocol]):
        return f"is {target.prefix} right in the URL?"
    if likely and likely[0] != target.protocol:
        return f"it does not speak {target.protocol}; by its /ping it is {version}: try --protocol {likely[0]}"
    return f"it does not speak {target.protocol}: choose another --protocol"


def _influx_error(text: str) -> str:
    """Return the error in an answer 200 of InfluxDB 1 to a query; "" if the query succeeded."""
    try:
        results = json.loads(text).get("results") or [{}]
        return str(results[0].get("error", ""))
    except (ValueError, AttributeError, TypeError, LookupError):
        return ""
