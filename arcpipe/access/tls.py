"""TLS for the listening sockets: a certificate, its key, and how both are exchanged while connections are open.

Clients may have certificates, too: who signs them is the third file, and what one says of its owner are names.

Knows files and the `ssl` module, nothing of sockets or HTTP; on the map it stands beside `config`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from arcpipe.access import expiry
from arcpipe.errors import ArcpipeError

# For TLS 1.2: forward secrecy and authenticated encryption only. What TLS 1.3 has is all good.
_TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# The last one is a key of another kind than the certificate's.
_MISMATCHES: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


# Names of a client's certificate that are looked at; more are of no use to anybody.
_MAX_NAMES: Final = 64
# The kinds of names that a token may be for, as `getpeercert` and OpenSSL call them.
NAME_KINDS: Final = ("DNS", "URI", "email", "CN")


class Certificate(NamedTuple):
    """What counts of a client's certificate that was found good: names such as "CN:web-1", and its end in seconds."""

    names: tuple[str, ...]
    expires: float


def certificate_of(peercert: Mapping[str, Any] | None) -> Certificate | None:
    """A client's certificate from what `SSLObject.getpeercert` tells; None if there was none.

    The alternative names come first, as they say more. A common name counts only if it is the only one.
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
    """A name as it is compared: those of hosts do not tell upper from lower case."""
    return name.lower().replace("dns:", "DNS:", 1) if name.startswith("DNS:") else name


class TLSError(ArcpipeError):
    """Certificate or key cannot be used; the text names the setting and says why."""


class ServerTLS:
    """The server's side of TLS, 1.2 and newer.

    `context` is for each new connection. It hands the connection to a context with the newest certificate, instead of
    taking a new one in: OpenSSL keeps a certificate for each kind of key, and so a context that had an RSA certificate
    and was given an ECDSA one would go on to show both. Made before the workers are forked, it lets a client resume its
    session at any of them.

    A session that is resumed brings the certificate that was found good when it began. So where the authorities change,
    `context` becomes another one, which cannot read the tickets of such sessions: their clients show their certificates
    again. No clock has a say in that.

    `certificate` and `authorities` tell when those that were read last begin and end, as far as that can be told.
    """

    def __init__(
        self, certificate_file: str, key_file: str, client_ca_file: str = "", needs_client: bool = False
    ) -> None:
        """Read the files.

        Args:
            client_ca_file: who signs certificates of clients; empty asks clients for none.
            needs_client: whether a client without a certificate is refused.

        Raises:
            TLSError: one of them cannot be used.
        """
        self._files = certificate_file, key_file
        self._client_ca_file = client_ca_file
        self._verify_mode = ssl.CERT_REQUIRED if needs_client else ssl.CERT_OPTIONAL
        self.context = self._newest = self._read_all()
        self._authorities = self._newest.get_ca_certs(binary_form=True)
        self._begin_sessions_anew()

    def reload(self) -> None:
        """Reads all files again, for connections that are opened from now on.

        Raises:
            TLSError: they cannot be used, and the former ones are still in force.
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
        # Despite its name it is called for clients that name no server, too.
        self.context.sni_callback = self._use_newest

    def _use_newest(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: object) -> None:
        if connection.context is not self._newest:
            connection.context = self._newest


def _trust(context: ssl.SSLContext, authorities_file: str) -> None:
    """Has a context take certificates that these authorities have signed."""
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
    # Compression leaks (CRIME); a renegotiation is work that a client may order for nothing.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate_file, key_file)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise TLSError(
                f"server.tls_key: {key_file} is not the key of the first certificate in {certificate_file}"
            ) from None
        reason = error.reason.replace("_", " ").lower() if error.reason else "they are not what OpenSSL takes"
        raise TLSError(f"server.tls_cert, server.tls_key: {certificate_file} and {key_file}: {reason}") from None
    except OSError as error:
        raise TLSError(f"server.tls_cert, server.tls_key: cannot be read: {error.strerror or error}") from None
    return context


def _read(setting: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise TLSError(f"{setting}: {path} cannot be read: {error.strerror or error}") from None
