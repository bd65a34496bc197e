"""HTTP connections of a sender: one for each node, kept open, by the standard library's client.

A request has an answer, or `NoAnswer`, which tells whether the server may have taken it. Nothing is tried again here.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from arcpipe.client.errors import ClientError
from arcpipe.client.options import Node, Options
from arcpipe.client.retry import Answer
from arcpipe.units import MB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Seconds after which a connection is not used again: servers and proxies close idle ones, and a request that meets the
# close has no answer. arcpipe closes after 75 s, many proxies after 60 s.
_IDLE_SECONDS: Final = 30.0
_MAX_ANSWER_BYTES: Final = 1 * MB  # the rest of a longer answer is not read


class NoAnswer(Exception):
    """There is no answer. `may_be_written` is False if the request did not even leave."""

    def __init__(self, reason: str, may_be_written: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_be_written = may_be_written


class Connections:
    """The connections of one thread."""

    def __init__(self, options: Options, has_tls: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Load the certificates, if some node has TLS or the options name some: that takes 20 ms.

        Raises:
            ClientError: they cannot be used.
        """
        self._options = options
        self._clock = clock
        has_tls = has_tls or options.ca_file is not None or options.certificate_file is not None
        self._tls = _tls_context(options) if has_tls else None
        self._open: dict[str, tuple[http.client.HTTPConnection, float]] = {}
        self._current: socket.socket | None = None
        self._is_aborted = False

    def post(self, node: Node, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request and return its answer.

        Raises:
            NoAnswer: there is none.
        """
        connection = self._connected(node)
        connection.sock.settimeout(self._options.answer_seconds)
        self._current = connection.sock
        if self._is_aborted:  # before there was a connection to end
            connection.close()
            raise NoAnswer("it was stopped", may_be_written=False)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A server that refuses by the head answers and closes: the answer may be there all the same.
                connection.request("POST", node.path + target, body, dict(headers))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise NoAnswer(_reason(error), may_be_written=True) from None
        content = b""
        try:
            content = response.read(_MAX_ANSWER_BYTES)
            is_whole = response.isclosed()
        except (OSError, http.client.HTTPException, ValueError):
            is_whole = False  # the status says what counts
        if is_whole and not response.will_close:
            self._open[node.url] = connection, self._clock()
        else:
            connection.close()
        return Answer(response.status, names, content)

    def abort(self) -> None:
        """End a request of another thread, and all that would follow: it has no answer."""
        self._is_aborted = True
        current = self._current
        if current is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(current, socket.SHUT_RDWR)  # of the TCP connection, not of TLS

    def close(self) -> None:
        """Close all connections."""
        for connection, _ in self._open.values():
            connection.close()
        self._open.clear()

    def _connected(self, node: Node) -> http.client.HTTPConnection:
        """Return the open connection to a node, or a new one.

        Raises:
            NoAnswer: it cannot be made.
        """
        if node.url in self._open:
            connection, since = self._open.pop(node.url)
            if self._clock() - since < _IDLE_SECONDS and connection.sock is not None and not _is_ended(connection.sock):
                return connection
            connection.close()
        connection = self._new(node)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise NoAnswer(f"cannot connect: {_reason(error)}", may_be_written=False) from None
        return connection

    def _new(self, node: Node) -> http.client.HTTPConnection:
        seconds = self._options.connect_seconds
        connection: http.client.HTTPConnection
        if node.scheme == "unix":
            connection = _UnixConnection(node.host, seconds)
        elif node.scheme == "https":
            connection = http.client.HTTPSConnection(node.host, node.port, timeout=seconds, context=self._tls)
        else:
            connection = http.client.HTTPConnection(node.host, node.port, timeout=seconds)
        # One class of the standard library makes another there, which may as well be a function.
        connection.response_class = partial(_BoundedResponse, self._options.answer_seconds)  # type: ignore[assignment]
        return connection


class _BoundedResponse(http.client.HTTPResponse):
    """An answer that has to be whole in time. A socket's own limit is for each read, so it begins anew with a byte."""

    def __init__(self, seconds: float, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_BoundedReader(sock, time.monotonic() + seconds))


class _BoundedReader(io.RawIOBase):
    """The bytes of a socket until a moment of the monotonic clock. After it, a read raises TimeoutError."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until both are closed
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._seconds)
        self.sock.connect(self._path)


def _is_ended(sock: socket.socket) -> bool:
    """Tell whether the server has closed an idle connection, or sent something that nobody asked for."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.read(1)
        else:
            sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(timeout)
    return True


def _tls_context(options: Options) -> ssl.SSLContext:
    """Make a context that trusts the given certificates, or the system's."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ClientError(f"ca_file: {options.ca_file} cannot be used: {_reason(error)}") from None
    if options.ca_file is not None:  # one of them may be the server's own certificate, without its authority
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if options.certificate_file is not None:
        try:
            context.load_cert_chain(options.certificate_file, options.key_file, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ClientError(
                f"certificate_file: {options.certificate_file} cannot be used: {_reason(error)}"
            ) from None
    return context


def _no_passphrase() -> str:
    raise ValueError("its key is encrypted, and nobody is there to type the passphrase")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """Say why a server could not be reached, in words for people."""
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS there: is http:// meant?"
    if isinstance(error, socket.gaierror | ssl.SSLError):
        return str(error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
