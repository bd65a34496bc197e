"""Authorities, certificates of clients, and a server that asks for them."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from tests.support.server import Server
from tests.support.tls import EC, openssl

NEW_KEY = ["-newkey", *EC]


def make_authority(directory: Path, name: str) -> None:
    """`{name}.pem` and `{name}.key`: a certificate of an authority."""
    openssl(
        *("req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", *NEW_KEY, "-keyout", f"{name}.key"),
        *("-out", f"{name}.pem"),
        cwd=directory,
    )


def sign(directory: Path, authority: str, stem: str, subject: str, names: str = "", days: str = "2") -> None:
    """`{stem}.pem` and `{stem}.key`: a certificate that an authority has signed."""
    openssl(
        *("req", "-nodes", "-subj", subject, *NEW_KEY, "-keyout", f"{stem}.key", "-out", f"{stem}.csr"),
        *(["-addext", f"subjectAltName={names}"] if names else []),
        cwd=directory,
    )
    openssl(
        *("x509", "-req", "-in", f"{stem}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
        *("-CAcreateserial", "-days", days, "-copy_extensions", "copy", "-out", f"{stem}.pem"),
        cwd=directory,
    )


def showing(directory: Path, stem: str = "", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client that trusts the server, and has a certificate itself."""
    context = ssl.create_default_context(cafile=str(directory / "server-ca.pem"))
    context.check_hostname = False
    if stem:
        context.load_cert_chain(directory / f"{stem}.pem", directory / f"{stem}.key")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def make_all(directory: Path) -> None:
    """Two authorities of clients, and a certificate for each kind of client."""
    make_authority(directory, "server-ca")
    sign(directory, "server-ca", "cert", "/CN=localhost", "DNS:localhost,IP:127.0.0.1")
    make_authority(directory, "clients")
    make_authority(directory, "strangers")
    sign(directory, "clients", "writer", "/O=Hall 3/CN=hall-3")
    sign(directory, "clients", "workload", "/CN=hall-3", "URI:spiffe://example/telegraf,DNS:Telegraf.Example")
    sign(directory, "clients", "unknown", "/CN=nobody-knows")
    sign(directory, "strangers", "stranger", "/CN=hall-3")


def mutual(directory: Path, **settings: object) -> Server:
    """A server that asks for certificates of `make_all`."""
    make_all(directory)
    server = Server(
        directory,
        server_tls_cert="cert.pem",
        server_tls_key="cert.key",
        server_tls_client_ca="clients.pem",
        server_workers=1,
        **settings,
    )
    server.tls = showing(directory, "writer")
    return server


def is_resumed(server: Server, tls: ssl.SSLContext, session: ssl.SSLSession | None) -> bool:
    """Whether a request gets through in a session that began before."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain,
        tls.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        if not connection.recv(1):
            raise ConnectionError("ended")
        return connection.session_reused is True
