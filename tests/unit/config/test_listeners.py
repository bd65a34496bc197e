"""The settings that say where the server listens: what is taken, and what is refused with which reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arcpipe.config.listeners import Listener, TCPAddress
from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.errors import ConfigError

AUTH = "[auth]\nenabled = true\n"
OPS = '[[server.listeners]]\naddress = "unix:/run/ops.sock"\n'


def loaded(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, {})


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)
    return str(raised.value)


def test_the_main_listener_comes_first_and_has_the_keys_of_the_server(tmp_path: Path) -> None:
    server = 'host = "::1"\nport = 1\npaths = "writes"\nproxy_protocol = true\ntrusted_proxies = ["::1"]\n'
    found = loaded(tmp_path, f"[server]\n{server}{OPS}").server.all_listeners()
    assert found == [
        Listener(address="[::1]:1", paths="writes", proxy_protocol=True),
        Listener(address="unix:/run/ops.sock"),
    ]
    assert found[0].tcp == TCPAddress("::1", 1)
    assert (found[0].path, found[1].path) == ("", "/run/ops.sock")


def test_an_empty_host_leaves_the_other_listeners(tmp_path: Path) -> None:
    assert loaded(tmp_path, f'[server]\nhost = ""\n{OPS}').server.all_listeners() == [
        Listener(address="unix:/run/ops.sock")
    ]


def test_a_variable_has_them_as_json() -> None:
    text = '[{"address": "127.0.0.1:1", "paths": "operations"}]'
    settings = load(None, {"ARCPIPE_SERVER_LISTENERS": text, "ARCPIPE_SERVER_TRUSTED_PROXIES": "10.0.0.0/8,unix"})
    assert settings.server.listeners == (Listener(address="127.0.0.1:1", paths="operations"),)
    assert settings.server.trusted_proxies == ("10.0.0.0/8", "unix")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('adress = "127.0.0.1:1"', "listener 1: adress is not a key of a listener; did you mean address?"),
        ('address = "127.0.0.1:1"\nx = 1', "x is not a key of a listener; it has address, paths, tls"),
        ("tls = true", "listener 1: Object missing required field `address`"),
        ('address = "127.0.0.1"', "listener 1: address '127.0.0.1': write \"127.0.0.1:8001\""),
        ('address = "127.0.0.1:65536"', "listener 1: address '127.0.0.1:65536': write"),
        ('address = "::1:1"', "listener 1: address '::1:1': write"),
        ('address = "127.0.0.1:1"\npaths = "reads"', "listener 1: Invalid enum value 'reads' - at `$.paths`"),
        ('address = "127.0.0.1:1"\nmode = "0600"', "mode and owner are for Unix sockets"),
        ('address = "unix:"', "write"),
        ('address = "unix:/run/"', "names a file"),
        (f'address = "unix:/{"x" * 107}"', "a Unix socket's path has 1 to 107 printable bytes"),
        ('address = "unix:/x"\nmode = "rw"', "mode 'rw': write it in octal digits, such as '0660'"),
        ('address = "unix:/x"\nowner = "a b"', "owner 'a b': write USER, USER:GROUP or :GROUP"),
    ],
)
def test_a_listener_that_is_wrong_is_refused_with_its_number(tmp_path: Path, entry: str, reason: str) -> None:
    assert reason in problems(tmp_path, f"[[server.listeners]]\n{entry}\n")


@pytest.mark.parametrize("value", ["[1]", "{a = 1}", '"10.0.0.1, 10.0.0.2"', '["10.0.0.1/8"]', '["localhost"]'])
def test_proxies_are_addresses_and_networks(tmp_path: Path, value: str) -> None:
    assert 'addresses, networks such as "10.0.0.0/8"' in problems(tmp_path, f"[server]\ntrusted_proxies = {value}\n")


def test_the_number_of_listeners_is_bounded(tmp_path: Path) -> None:
    many = "".join(OPS.replace("ops", f"ops{number}") for number in range(17))
    assert "allowed: at most 16 listeners" in problems(tmp_path, many)


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ('[server]\nhost = ""\n', "server.host", "nobody could reach the server"),
        ('[[server.listeners]]\naddress = "127.0.0.1:8000"\n', "server.listeners", "two listeners have the address"),
        (OPS + OPS, "server.listeners", "two listeners have the address unix:/run/ops.sock"),
        (OPS + "tls = true\n", "server.listeners", "needs server.tls_cert and server.tls_key"),
        (OPS + "proxy_protocol = true\n", "server.trusted_proxies", "accepts only connections from these"),
        ("[server]\nproxy_protocol = true\n", "server.trusted_proxies", "accepts only connections from these"),
        ('[server]\ntls_client_ca = "ca.pem"\n', "server.tls_client_ca", "set server.tls_cert and server.tls_key"),
        ('[[server.listeners]]\naddress = "0.0.0.0:1"\n', "server.listeners", "anyone who reaches 0.0.0.0:1 could"),
    ],
)
def test_listeners_that_contradict_other_keys_are_refused(tmp_path: Path, text: str, key: str, reason: str) -> None:
    (line,) = problems(tmp_path, text).splitlines()
    assert f"{key} = " in line
    assert reason in line


@pytest.mark.parametrize("text", [f'[[server.listeners]]\naddress = "0.0.0.0:1"\n{AUTH}', OPS])
def test_an_open_address_with_tokens_and_a_socket_without_them_are_allowed(tmp_path: Path, text: str) -> None:
    assert len(loaded(tmp_path, text).server.listeners) == 1


def test_what_is_shown_of_them_can_be_written_again(tmp_path: Path) -> None:
    settings = loaded(tmp_path, OPS + 'paths = "operations"\n')
    shown: dict[str, Any] = {item.key: item.value for item in settings.effective()}
    assert shown["server.listeners"] == [{"address": "unix:/run/ops.sock", "paths": "operations"}]


@pytest.mark.parametrize("authority", ["", 'tls_client_ca = "ca.pem"\n'])
def test_a_certificate_that_no_listener_uses_is_told(tmp_path: Path, authority: str) -> None:
    """Everything is plain HTTP then, and no client needs a certificate, whatever the settings seem to say."""
    server = f'[server]\nhost = ""\ntls_cert = "cert.pem"\ntls_key = "key.pem"\n{authority}'
    [warning] = loaded(tmp_path, f"{server}{OPS}{AUTH}").warnings
    assert warning.startswith("server.tls_cert = cert.pem is not used: no listener speaks TLS")
    assert ("server.tls_client_ca" in warning) == bool(authority)
    assert loaded(tmp_path, f"{server}{OPS}tls = true\n{AUTH}").warnings == ()
    assert loaded(tmp_path, f"{server}{OPS}{AUTH}".replace('host = ""\n', "")).warnings == ()
