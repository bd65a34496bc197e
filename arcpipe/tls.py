"""TLS for the listening sockets: a certificate, its key, and how both are exchanged while connections are open.

Knows files and the `ssl` module, nothing of sockets or HTTP; on the map it stands beside `config`.
"""

from __future__ import annotations

import ssl
from typing import Final

from arcpipe.errors import ArcpipeError

# For TLS 1.2: forward secrecy and authenticated encryption only. What TLS 1.3 has is all good.
_TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# The last one is a key of another kind than the certificate's.
_MISMATCHES: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


class TLSError(ArcpipeError):
    """Certificate or key cannot be used; the text names the setting and says why."""


class ServerTLS:
    """The server's side of TLS, 1.2 and newer.

    `context` is for the sockets. It hands every new connection to a context with the newest certificate, instead of
    taking a new one in: OpenSSL keeps a certificate for each kind of key, and so a context that had an RSA certificate
    and was given an ECDSA one would go on to show both. Made before the workers are forked, it lets a client resume its
    session at any of them.
    """

    def __init__(self, certificate_file: str, key_file: str) -> None:
        """Raises TLSError."""
        self._files = certificate_file, key_file
        self.context = _context(*self._files)
        self._newest = self.context
        # Despite its name it is called for clients that name no server, too.
        self.context.sni_callback = self._use_newest

    def reload(self) -> None:
        """Reads both files again, for connections that are opened from now on.

        Raises:
            TLSError: they cannot be used, and the former ones are still in force.
        """
        self._newest = _context(*self._files)

    def _use_newest(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: object) -> None:
        if connection.context is not self._newest:
            connection.context = self._newest


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
