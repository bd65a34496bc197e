"""What `arcpipe status` asks, and of whom: one server's `/api/v1/status`, as anybody could.

Knows connections, certificates and the answer's shape; nothing of how it is shown.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Struct

from arcpipe.cli.unix_http import UnixHTTPConnection
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.config.listeners import Listener
    from arcpipe.config.settings import Settings
    from arcpipe.monitoring.health import Picture

_PATH: Final = "/api/v1/status"
_TIMEOUT_SECONDS: Final = 5.0
_UNIX: Final = "unix:"


class NotAnswering(ArcpipeError):
    """There is no picture to be had; the text says why."""


class OutlinedVerdict(Struct, frozen=True):
    """Of `health.Verdict` what every version has."""

    state: str = "warning"
    headline: str = ""
    promise: str = ""


class OutlinedIssue(Struct, frozen=True):
    """Of `health.Issue` what every version has."""

    message: str
    severity: str = "warning"
    recommendation: str = ""


class OutlinedInstance(Struct, frozen=True):
    """Of `snapshot.Snapshot` what every version has."""

    version: str
    uptime_seconds: float = 0.0


class Outline(Struct, frozen=True):
    """What the answer of another version has in common with a `Picture`."""

    healthy: bool
    instance: OutlinedInstance
    verdict: OutlinedVerdict = OutlinedVerdict()
    issues: list[OutlinedIssue] = []


class StatusServer:
    """One server, asked over a connection of its own each time, so that any of its workers may answer."""

    def __init__(self, url: str, host: str, port: int, path: str, tls: ssl.SSLContext | None, token: str):
        self.url = url
        self._host, self._port, self._path, self._tls = host, port, path, tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def at(cls, url: str, token: str, authorities: Path | None = None) -> StatusServer:
        """Return the server of a URL.

        Args:
            authorities: PEM certificates that are trusted in the place of the system's; None trusts those.

        Raises:
            ArcpipeError: it is no URL of a server, or these certificates cannot be used.
        """
        if url.startswith(_UNIX) and len(url) > len(_UNIX):
            _needs_tls(authorities, url, False)
            return cls(url, url, 0, _PATH, None, token)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise ArcpipeError(f"--url: {url!r} is not a URL such as http://127.0.0.1:8000 or unix:/path/of.sock")
        is_tls = parts.scheme == "https"
        _needs_tls(authorities, url, is_tls)
        context = _trusting(authorities, "--cacert") if is_tls else None
        return cls(url, host, port or (443 if is_tls else 80), parts.path.rstrip("/") + _PATH, context, token)

    @classmethod
    def of_settings(cls, settings: Settings, token: str, authorities: Path | None = None) -> StatusServer:
        """Return the server that these settings start, on this machine.

        Raises:
            ArcpipeError: no listener tells how it is, or the certificates cannot be used.
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
            # Else the certificate itself is what is trusted, whoever signed it. Whatever name it is for: it is this
            # machine that is asked, by its address.
            option = "server.tls_cert" if authorities is None else "--cacert"
            context = _trusting(authorities or Path(server.tls_cert), option)
            context.check_hostname = False
        return cls(url, host, port, _PATH, context, token)

    def ask(self) -> bytes:
        """Return the answer as it came. Raises NotAnswering."""
        connection: http.client.HTTPConnection
        if self._host.startswith(_UNIX):
            connection = UnixHTTPConnection(self._host.removeprefix(_UNIX), _TIMEOUT_SECONDS)
        elif self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise NotAnswering(f"not answering within {_TIMEOUT_SECONDS:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise NotAnswering(f"its certificate is not trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) if isinstance(error, socket.gaierror | ssl.SSLError) else _reason(error)
            raise NotAnswering(f"not answering: {reason}") from None
        finally:
            connection.close()
        if response.status in (401, 403):
            needed = "a token with the scope 'read' is needed: --token-file FILE, or the variable ARCPIPE_TOKEN"
            raise NotAnswering(f"{needed} ({_error_in(body)})")
        if response.status != http.client.OK:
            raise NotAnswering(f"answered {response.status} {response.reason}: {_error_in(body)}")
        return body

    def picture(self) -> Picture | Outline:
        """Return the answer, or what is known of it where the server is of another version. Raises NotAnswering."""
        return decode(self.ask())


def decode(body: bytes) -> Picture | Outline:
    """Return an answer; its outline where it is of another version.

    Raises:
        NotAnswering: it is not even that.
    """
    import msgspec

    from arcpipe.monitoring.health import Picture

    with contextlib.suppress(msgspec.ValidationError, msgspec.DecodeError):
        return msgspec.json.decode(body, type=Picture)
    try:
        return msgspec.json.decode(body, type=Outline)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise NotAnswering(f"the answer is not that of an arcpipe: {error}") from None


def _needs_tls(authorities: Path | None, url: str, is_tls: bool) -> None:
    if authorities is not None and not is_tls:
        raise ArcpipeError(f"--cacert: {url} is asked without TLS, so no certificate is checked")


def _trusting(authorities: Path | None, option: str) -> ssl.SSLContext:
    """What checks the server by these certificates, or by the system's."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:
        raise ArcpipeError(f"{option}: {authorities} cannot be used: there is no PEM certificate in it") from None
    except OSError as error:
        raise ArcpipeError(f"{option}: {authorities} cannot be used: {error.strerror or error}") from None
    if authorities is not None:  # then one of its certificates may be the server's own, whoever signed that
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _listener_to_ask(settings: Settings) -> Listener:
    """Return the first listener that tells how the server is; rather one that asks for no certificate of the client."""
    telling = [one for one in settings.server.all_listeners() if one.paths != "writes" and not one.proxy_protocol]
    if not telling:
        raise ArcpipeError("no listener serves the status, except behind a proxy: name one with --url")
    wants_certificate = bool(settings.server.tls_client_ca)
    return min(telling, key=lambda one: wants_certificate and one.tls)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _error_in(body: bytes) -> str:
    import orjson

    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return repr(body[:80].decode("utf-8", "replace"))
