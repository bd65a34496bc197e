"""A server that speaks TLS, with certificates that openssl makes."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.support.server import Server

EC = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]


RSA = ["rsa:2048"]


def openssl(*arguments: str, cwd: Path, stdin: str = "") -> str:
    done = subprocess.run(
        ["openssl", *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def make_certificate(directory: Path, name: str = "localhost", kind: list[str] = EC, stem: str = "") -> None:
    """`cert.pem` and `key.pem`, signed by themselves."""
    openssl(
        *("req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-newkey", *kind),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", f"{stem}key.pem"),
        *("-out", f"{stem}cert.pem"),
        cwd=directory,
    )


def trusting(directory: Path, stem: str = "") -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / f"{stem}cert.pem"))


def tls_server(directory: Path, **settings: object) -> Server:
    server = Server(directory, server_tls_cert="cert.pem", server_tls_key="key.pem", **settings)
    server.tls = trusting(directory)
    return server
