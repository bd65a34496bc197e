"""The client of `arcpipe status`: it asks one server for `/api/v1/status`.

This module knows connections, certificates and the shape of the answer; it does not know how that is shown.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Struct

from arcpipe.cli.unix_http import UnixHTTPConnection
from arcpipe.errors import ArcpipeError
from arcpipe.units import KB, MB

if TYPE_CHECKING:
    from arcpipe.config.listeners import Listener
    from arcpipe.config.settings import Settings
    from arcpipe.monitoring.health import Picture

_PATH: Final = "/api/v1/status"
_TIMEOUT_SECONDS: Final = 5.0  # for the connection, and for each piece of the answer
_ANSWER_SECONDS: Final = 30.0  # for the whole body
# That of 256 workers has 1 MB. Whatever else listens at the address must not fill the memory.
_MAX_ANSWER_BYTES: Final = 16 * MB
_PIECE_BYTES: Final = 64 * KB
_UNIX: Final = "unix:"
_BLANKS: Final = re.compile(r"[\x00-\x20\x7f]")
_TOKEN: Final = re.compile(r"[\x21-\x7e]*")


class NotAnswering(ArcpipeError):
    """The server gives no usable answer; the text says why."""


class OutlinedVerdict(Struct, frozen=True):
    """The fields of `health.Verdict` that every version has."""

    state: str = "warning"
    headline: str = ""
    promise: str = ""


class OutlinedIssue(Struct, frozen=True):
    """The fields of `health.Issue` that every version has."""

    message: str
    severity: str = "warning"
    recommendation: str = ""


class OutlinedInstance(Struct, frozen=True):
    """The fields of `snapshot.Snapshot` that every version has."""

    version: str
    uptime_seconds: float = 0.0


class Outline(Struct, frozen=True):
    """The fields of a `Picture` that every version has, for the answer of another version."""

    healthy: bool
    instance: OutlinedInstance
    verdict: OutlinedVerdict = OutlinedVerdict()
    issues: list[OutlinedIssue] = []


class StatusServer:
    """One server. Each question has a new connection, so that any worker may answer."""

    def __init__(self, url: str, host: str, port: int, path: str, tls: ssl.SSLContext | None, token: str):
        self.url = url
        self._host, self._port, self._path, self._tls = host, port, path, tls
        if not _TOKEN.fullmatch(token):  # http.client would repeat it in its reason
            raise ArcpipeError("the token has characters that no token has, such as a blank or the end of a line")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def at(cls, url: str, token: str, authorities: Path | None = None) -> StatusServer:
        """Return the server at a URL.

        Args:
            url: http://, https:// or unix:.
            token: sent with each request; empty sends none.
            authorities: PEM certificates to trust instead of the system's.

        Raises:
            ArcpipeError: the URL is invalid, or the certificates cannot be used.
        """
        if url.startswith(_UNIX) and len(url) > len(_UNIX):
            _needs_tls(authorities, url, False)
            return cls(url, url, 0, _PATH, None, token)
        if "@" in url.partition("://")[2].partition("/")[0]:  # it may be a token, which must not be shown
            raise ArcpipeError("--url: it has a user or a password; give the token by --token-file or ARCPIPE_TOKEN")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or _BLANKS.search(url):
            raise ArcpipeError(f"--url: {url!r} is not a URL such as http://127.0.0.1:8000 or unix:/path/of.sock")
        is_tls = parts.scheme == "https"
        _needs_tls(authorities, url, is_tls)
        context = _trusting(authorities, "--cacert") if is_tls else None
        return cls(url, host, port or (443 if is_tls else 80), parts.path.rstrip("/") + _PATH, context, token)

    @classmethod
    def of_settings(cls, settings: Settings, token: str, authorities: Path | None = None) -> StatusServer:
        """Return the server with these settings on this machine.

        Args:
            token: sent with each request; empty sends none.
            authorities: PEM certificates to trust instead of the server's own.

        Raises:
            ArcpipeError: no listener serves the status, or the certificates cannot be used.
        """
        server = settings.server
        listener = _listener_to_ask(settings)
        if listener.path:
            return cls.at(listener.address, token, authorities)
        host, port = listener.tcp
        if not port:
            raise ArcpipeError("server.port is 0, so the port is whatever was free; the log says which: --url needs it")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if listener.tls else 'http'}://{shown}:{port}"
        _needs_tls(authorities, url, listener.tls)
        context = None
        if listener.tls:
            # Without --cacert the server's own certificate is trusted, whoever signed it. Its names are not checked,
            # because the request goes to an address of this machine.
            option = "server.tls_cert" if authorities is None else "--cacert"
            context = _trusting(authorities or Path(server.tls_cert), option)
            context.check_hostname = False
        return cls(url, host, port, _PATH, context, token)

    def ask_health(self) -> None:
        """Ask if a worker answers at all, which needs no token.

        Raises:
            NotAnswering: none does.
        """
        self._get(self._path.removesuffix(_PATH) + "/health")

    def ask(self) -> bytes:
        """Return the body of the server's answer.

        Raises:
            NotAnswering: there is no answer, or not the status.
        """
        return self._get(self._path)

    def _get(self, path: str) -> bytes:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            body = _body_of(response)
        except TimeoutError:
            raise NotAnswering(f"not answering within {_TIMEOUT_SECONDS:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise NotAnswering(f"its certificate is not trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotAnswering(f"not answering: {_reason(error, self._tls is not None)}") from None
        finally:
            connection.close()
        if response.status in (401, 403):
            needed = "a token with the scope 'read' is needed: --token-file FILE, or the variable ARCPIPE_TOKEN"
            raise NotAnswering(f"{needed} ({_error_in(body)})")
        if response.status != http.client.OK:
            raise NotAnswering(f"answered {response.status} {response.reason}: {_error_in(body)}")
        return body

    def _connection(self) -> http.client.HTTPConnection:
        if self._host.startswith(_UNIX):
            return UnixHTTPConnection(self._host.removeprefix(_UNIX), _TIMEOUT_SECONDS)
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls)

    def picture(self) -> Picture | Outline:
        """Return the server's answer, or its outline if the server is of another version.

        Raises:
            NotAnswering: there is no answer, or not the status.
        """
        return decode(self.ask())


def decode(body: bytes) -> Picture | Outline:
    """Decode an answer, or its outline if it is of another version.

    Raises:
        NotAnswering: it is neither.
    """
    import msgspec

    from arcpipe.monitoring.health import Picture

    with contextlib.suppress(msgspec.ValidationError, msgspec.DecodeError):
        return msgspec.json.decode(body, type=Picture)
    try:
        return msgspec.json.decode(body, type=Outline)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise NotAnswering(f"the answer is not that of an arcpipe: {error}") from None


def _body_of(response: http.client.HTTPResponse) -> bytes:
    """Read the body of an answer, up to _MAX_ANSWER_BYTES and for _ANSWER_SECONDS.

    Raises:
        NotAnswering: it is larger, or does not end.
        OSError, HTTPException: the connection failed, or ended before the body.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    body = bytearray()
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise NotAnswering(f"its answer has more than {_MAX_ANSWER_BYTES // MB} MB, so it is not an arcpipe")
        if time.monotonic() > deadline:
            raise NotAnswering(f"its answer did not end within {_ANSWER_SECONDS:g} s")
    if response.length:  # read1() does not tell it
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


def _needs_tls(authorities: Path | None, url: str, is_tls: bool) -> None:
    if authorities is not None and not is_tls:
        raise ArcpipeError(f"--cacert: {url} is asked without TLS, so no certificate is checked")


def _trusting(authorities: Path | None, option: str) -> ssl.SSLContext:
    """Make a context that trusts these certificates, or the system's."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:
        raise ArcpipeError(f"{option}: {authorities} cannot be used: there is no PEM certificate in it") from None
    except OSError as error:
        raise ArcpipeError(f"{option}: {authorities} cannot be used: {error.strerror or error}") from None
    if authorities is not None:  # one of them may be the server's own certificate, without its authority
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _listener_to_ask(settings: Settings) -> Listener:
    """Return the first listener that serves the status, preferably one that needs no client certificate."""
    telling = [one for one in settings.server.all_listeners() if one.paths != "writes" and not one.proxy_protocol]
    if not telling:
        raise ArcpipeError("no listener serves the status, except behind a proxy: name one with --url")
    wants_certificate = bool(settings.server.tls_client_ca)
    return min(telling, key=lambda one: wants_certificate and one.tls)


def _reason(error: Exception, is_tls: bool) -> str:
    from arcpipe.client.connections import reason_of  # it takes a while, and few calls fail

    if isinstance(error, http.client.RemoteDisconnected) and not is_tls:
        return "it ended the connection without an answer: is https:// meant?"
    return reason_of(error)


def _error_in(body: bytes) -> str:
    import orjson

    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return repr(body[:80].decode("utf-8", "replace"))
