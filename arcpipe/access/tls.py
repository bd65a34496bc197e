"""TLS for the listening sockets: a certificate and its key, which may be replaced while connections are open.

Clients may have certificates, too. A third file has the authorities that sign them; the names in a client's certificate
identify its owner. This module knows files and the `ssl` module, nothing of sockets or HTTP.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from arcpipe.access import expiry
from arcpipe.errors import ArcpipeError
from arcpipe.units import MB

# For TLS 1.2: only ciphers with forward secrecy and authenticated encryption. All ciphers of TLS 1.3 have both.
_TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# OpenSSL's reasons for a key of another certificate; the last one is for a key of another type.
_MISMATCHES: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


# Names of a client's certificate that are used; further ones are ignored.
_MAX_NAMES: Final = 64
# The kinds of names that a token may be for, as `getpeercert` and OpenSSL call them.
NAME_KINDS: Final = ("DNS", "URI", "email", "CN")


class Certificate(NamedTuple):
    """Names such as "CN:web-1", and expiry, of a client's valid certificate."""

    names: tuple[str, ...]
    expires: float  # seconds since the epoch


def certificate_of(peercert: Mapping[str, Any] | None) -> Certificate | None:
    """Return a client's certificate from the result of `SSLObject.getpeercert`; None if it has none.

    The alternative names come first, because they are more specific. A common name counts only if it is the only one.
    """
    if not peercert:
        return None
    names = [f"{kind}:{value}" for kind, value in peercert.get("subjectAltName", ()) if kind in NAME_KINDS]
    common = [value for part in peercert.get("subject", ()) for kind, value in part if kind == "commonName"]
    if len(common) == 1:
        names.append(f"CN:{common[0]}")
    return Certificate(
        tuple(map(normal_name, names[:_MAX_NAMES])), float(ssl.cert_time_to_seconds(peercert["notAfter"]))
    )


def normal_name(name: str) -> str:
    """Normalise a name for comparison: host names are lower case."""
    return name.lower().replace("dns:", "DNS:", 1) if name.startswith("DNS:") else name


class TLSError(ArcpipeError):
    """A certificate or key cannot be used; the text names the setting and says why."""


class ServerTLS:
    """The server's side of TLS, 1.2 and newer.

    Each new connection begins with `context`, which passes it to a context with the newest certificate. It does not
    load a new certificate itself: OpenSSL keeps one for each type of key, so after an RSA and an ECDSA certificate it
    would present both. `context` is made before the workers are forked, so clients can resume sessions at any worker.

    A resumed session carries the client certificate that was verified when it began. So if the authorities change,
    `context` is replaced by one that cannot read the tickets of earlier sessions, and their clients present their
    certificates again.

    `certificate` and `authorities` are the lives of the certificates that were read last.
    """

    def __init__(
        self, certificate_file: str, key_file: str, client_ca_file: str = "", needs_client: bool = False
    ) -> None:
        """Read the files.

        Args:
            client_ca_file: certificates of the authorities that sign those of clients; empty asks clients for none.
            needs_client: refuse clients without a certificate.

        Raises:
            TLSError: a file cannot be used.
        """
        self._files = certificate_file, key_file
        self._client_ca_file = client_ca_file
        self._verify_mode = ssl.CERT_REQUIRED if needs_client else ssl.CERT_OPTIONAL
        self.context = self._newest = self._read_all()
        self._authorities = self._newest.get_ca_certs(binary_form=True)
        self._begin_sessions_anew()

    def reload(self) -> None:
        """Read all files again, for new connections.

        Raises:
            TLSError: a file cannot be used; the former ones stay in force.
        """
        self._newest = self._read_all()
        authorities = self._newest.get_ca_certs(binary_form=True)
        if authorities != self._authorities:
            self._authorities = authorities
            self._begin_sessions_anew()

    def _read_all(self) -> ssl.SSLContext:
        context = _context(*self._files)
        if self._client_ca_file:
            _trust(context, self._client_ca_file)
            context.verify_mode = self._verify_mode
        self.certificate = expiry.of_certificate("server.tls_cert", _read("server.tls_cert", self._files[0]))
        self.authorities = expiry.of_authorities(context)
        return context

    def _begin_sessions_anew(self) -> None:
        self.context = self._newest
        # OpenSSL calls it also for clients that send no server name.
        self.context.sni_callback = self._use_newest

    def _use_newest(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: object) -> None:
        if connection.context is not self._newest:
            connection.context = self._newest


def _trust(context: ssl.SSLContext, authorities_file: str) -> None:
    """Have a context accept certificates that these authorities have signed."""
    setting = "server.tls_client_ca"
    if b"-----BEGIN CERTIFICATE-----" not in _read(setting, authorities_file):
        raise TLSError(f"{setting}: there is no PEM certificate in {authorities_file}")
    try:
        context.load_verify_locations(authorities_file)
    except (OSError, ssl.SSLError) as error:
        raise TLSError(f"{setting}: {authorities_file}: {getattr(error, 'reason', None) or error}") from None


def _context(certificate_file: str, key_file: str) -> ssl.SSLContext:
    certificate, key = _read("server.tls_cert", certificate_file), _read("server.tls_key", key_file)
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise TLSError(f"server.tls_cert: there is no PEM certificate in {certificate_file}")
    if b"PRIVATE KEY-----" not in key:
        raise TLSError(f"server.tls_key: there is no PEM private key in {key_file}")
    if b"ENCRYPTED" in key:
        raise TLSError(
            f"server.tls_key: {key_file} is encrypted, and nobody is there to type its passphrase; "
            f"`openssl pkey -in {key_file} -out PLAIN_KEY_FILE` decrypts it"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    # Compression leaks secrets (CRIME); renegotiation lets a client cause work at no cost to itself.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate_file, key_file)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise TLSError(
                f"server.tls_key: {key_file} is not the key of the first certificate in {certificate_file}"
            ) from None
        reason = error.reason.replace("_", " ").lower() if error.reason else "OpenSSL does not accept them"
        raise TLSError(f"server.tls_cert, server.tls_key: {certificate_file} and {key_file}: {reason}") from None
    except OSError as error:
        raise TLSError(f"server.tls_cert, server.tls_key: cannot be read: {error.strerror or error}") from None
    return context


def _read(setting: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MB)
    except OSError as error:
        raise TLSError(f"{setting}: {path} cannot be read: {error.strerror or error}") from None
