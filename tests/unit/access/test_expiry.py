"""When certificates and tokens end, and from when on somebody is told."""

from __future__ import annotations

import logging
import os
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.access import expiry, tokens
from arcpipe.access.expiry import Life, next_to_end, of_certificate, of_tokens
from arcpipe.access.reload import Changeable
from arcpipe.access.tls import ServerTLS
from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.counters import Counters
from arcpipe.monitoring import health, metrics, snapshot
from tests.support.certificates import in_days, write_certificate

DAY = 86_400


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (datetime(2026, 1, 1), datetime(2027, 12, 31, 23, 59, 59)),
        (datetime(1950, 1, 1), datetime(1969, 7, 20)),  # the first year that two digits may stand for
        (datetime(2049, 12, 31), datetime(2050, 1, 1)),  # the last one, and one with four digits
        (datetime(2000, 2, 29), datetime(9999, 12, 31, 23, 59, 59)),  # "no end" in RFC 5280
    ],
)
def test_the_dates_of_a_certificate_are_read_as_openssl_writes_them(
    tmp_path: Path, begins: datetime, ends: datetime
) -> None:
    write_certificate(tmp_path, begins.replace(tzinfo=UTC), ends.replace(tzinfo=UTC))
    pem = (tmp_path / "cert.pem").read_bytes()
    life = of_certificate("x", b"a comment\n" + pem + (tmp_path / "key.pem").read_bytes() + pem)
    assert life == Life("x", begins.replace(tzinfo=UTC).timestamp(), ends.replace(tzinfo=UTC).timestamp())


@given(st.data())
def test_whatever_a_certificate_holds_its_dates_are_known_or_not(data: st.DataObject) -> None:
    with_dates = ssl.PEM_cert_to_DER_cert(PEM)
    cut = data.draw(st.integers(0, len(with_dates)))
    bad = bytearray(with_dates[:cut])
    for at in data.draw(st.lists(st.integers(0, max(0, cut - 1)), max_size=4)):
        if bad:
            bad[at] ^= data.draw(st.integers(1, 255))
    life = of_certificate("x", ssl.DER_cert_to_PEM_cert(bytes(bad)).encode())
    assert life is None or life.ends > -1e11


def _pem() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_certificate(Path(folder), in_days(-1), in_days(1))
        return Path(folder, "cert.pem").read_text()


PEM = _pem()


def test_an_end_is_told_two_weeks_or_a_quarter_life_ahead() -> None:
    """What ends is told of for two weeks or the last quarter of its life."""
    assert Life("a", 0, 365 * DAY).warn_from == 351 * DAY
    assert Life("a", 0, 8 * DAY).warn_from == 6 * DAY  # one that is renewed every few days
    assert Life("a", 10, 0).warn_from == 0  # nonsense


def test_an_end_that_is_near_is_told_before_one_of_the_last_week() -> None:
    """A certificate that can still be renewed is told before one that ended in the last week."""
    now = 100 * DAY
    old, over, just_over, soon, later, last = (Life("x", 0, days * DAY) for days in (90, 95, 98, 110, 120, 130))
    assert next_to_end([], now) is None
    assert next_to_end([old], now) is None
    assert next_to_end([last, old, later], now) == later
    assert next_to_end([last, over, just_over, later], now) == just_over
    assert next_to_end([later, over, just_over, soon], now) == soon
    short = Life("renewed every few days", 99 * DAY, 107 * DAY)  # it ends first, and it is not time yet
    assert next_to_end([short, soon], now) == soon


def token(**fields: Any) -> tokens.Token:
    defaults = {"sha256": "0" * 64, "scopes": ("write",), "created": datetime(2026, 1, 1, tzinfo=UTC)}
    return tokens.Token(**{"id": "22222222", **defaults, **fields})


def test_tokens_without_an_end_and_revoked_ones_never_end() -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)
    found = [token(), token(expires=end, revoked=end), token(id="33333333", expires=end)]
    assert of_tokens(found) == [Life("33333333", found[0].created.timestamp(), end.timestamp())]


class Instance:
    """The files as the supervisor has read them, and the answers about them."""

    def __init__(self, directory: Path, **variables: str) -> None:
        given = {"ARCPIPE_WAL_DIR": str(directory / "wal"), **variables}
        self.settings: Settings = load(None, given)
        self.counters = Counters(1)
        self.changeable = Changeable(self.settings, lambda: self.settings, self.counters)

    def snapshot(self, **fields: Any) -> snapshot.Snapshot:
        return msgspec.structs.replace(snapshot.take(self.settings, self.counters, []), **fields)

    def issues(self, **fields: Any) -> list[health.Issue]:
        codes = ("certificate_expires", "client_ca_expires", "token_expires")
        return [issue for issue in health.judge(self.snapshot(**fields)) if issue.code in codes]

    def samples(self) -> dict[tuple[str, ...], float]:
        families = metrics.families(self.snapshot())
        found = [one for family in families for one in family.samples]
        return {(one.name, *one.labels.values()): one.value for one in found}


def test_a_certificate_is_told_of_before_it_ends_and_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = in_days(100)
    write_certificate(tmp_path, in_days(-265), ends)
    paths = {f"ARCPIPE_SERVER_TLS_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    instance = Instance(tmp_path, **paths)
    instance.changeable.read()
    at = ends.timestamp()
    assert instance.samples()["arcpipe_certificate_expiry_timestamp_seconds", "server.tls_cert"] == at
    assert instance.issues() == []
    assert "expires" not in caplog.text

    [issue] = instance.issues(time=at - 13 * DAY)
    assert (issue.code, issue.severity) == ("certificate_expires", "warning")
    assert issue.message.startswith("the certificate of server.tls_cert expires in 13.0 days, at 20")
    [issue] = instance.issues(time=at + DAY)
    assert issue.severity == "critical"
    assert issue.message.startswith("the certificate of server.tls_cert expired 1.0 days ago, at 20")
    assert instance.issues(time=at + 1000 * DAY)

    # Each day a line, and one when it is over, however often it is looked.
    now = at
    monkeypatch.setattr(time, "time", lambda: now)
    with caplog.at_level(logging.WARNING):
        for step in range(20 * 24):
            now = at - 15 * DAY + step * DAY / 24 + 1
            instance.changeable.note_endings()
    said = [record.getMessage() for record in caplog.records if "server.tls_cert" in record.getMessage()]
    date = ends.strftime("%Y-%m-%d %H:%M UTC")
    assert (
        said
        == [f"the certificate of server.tls_cert expires at {date}"] * 14
        + [f"the certificate of server.tls_cert has expired at {date}"] * 5
    )


def test_a_renewed_certificate_ends_the_warning_at_the_reload(tmp_path: Path) -> None:
    write_certificate(tmp_path, in_days(-30), in_days(1))
    paths = {f"ARCPIPE_SERVER_TLS_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    instance = Instance(tmp_path, **paths)
    instance.changeable.read()
    assert [issue.severity for issue in instance.issues()] == ["warning"]
    write_certificate(tmp_path, in_days(-1), in_days(90))
    assert instance.issues() != []  # it is not in force yet
    instance.changeable.reload()
    assert instance.issues() == []


def test_the_authorities_of_clients_end_too(tmp_path: Path) -> None:
    for stem, days in (("old", -10), ("first", 3), ("later", 300)):
        write_certificate(tmp_path, in_days(-30), in_days(days), stem, name=f"CA {stem}", is_authority=True)
    write_certificate(tmp_path, in_days(-1), in_days(90))
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"".join((tmp_path / f"{stem}cert.pem").read_bytes() for stem in ("old", "later", "first")))
    variables = {f"ARCPIPE_SERVER_TLS_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    instance = Instance(tmp_path, **variables, ARCPIPE_SERVER_TLS_CLIENT_CA=str(bundle))
    instance.changeable.read()
    [issue] = instance.issues()
    assert (issue.code, issue.severity) == ("client_ca_expires", "warning")
    assert issue.message.startswith("the authority CA first in server.tls_client_ca expires in 3.0 days")
    assert ("arcpipe_certificate_expiry_timestamp_seconds", "server.tls_client_ca") in instance.samples()


def test_tokens_are_counted_by_state_and_told_of_before_they_end(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.toml")
    now = datetime.now(UTC).replace(microsecond=0)
    year_ago = now - timedelta(days=365)
    for id, fields in {
        "22222222": {},
        "33333333": {"expires": now + timedelta(days=3)},
        "44444444": {"expires": now + timedelta(days=40)},
        "55555555": {"expires": now - timedelta(days=40)},
        "66666666": {"expires": now + timedelta(days=1), "revoked": now},
    }.items():
        tokens.add(path, token(id=id, created=year_ago, **fields))
    instance = Instance(tmp_path, ARCPIPE_AUTH_ENABLED="1", ARCPIPE_AUTH_TOKENS_FILE=path)
    instance.changeable.read()
    [issue] = instance.issues()
    assert (issue.code, issue.severity) == ("token_expires", "warning")
    assert issue.message.startswith("token 33333333 expires in 3.0 days, at ")
    samples = instance.samples()
    assert samples["arcpipe_token_expiry_timestamp_seconds",] == (now + timedelta(days=3)).timestamp()
    assert [samples["arcpipe_tokens", state] for state in ("active", "expired", "revoked")] == [3, 1, 1]
    tokens.revoke(path, "33333333", now)
    instance.changeable.reload()
    assert instance.issues() == []


def test_without_tls_and_tokens_there_is_nothing_to_tell(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.changeable.read()
    names = {name for name, *_ in instance.samples()}
    assert not names & {"arcpipe_tokens", "arcpipe_token_expiry_timestamp_seconds"}
    assert "arcpipe_certificate_expiry_timestamp_seconds" not in names
    assert instance.issues() == []


def test_a_certificate_that_openssl_takes_and_nobody_can_date_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificate(tmp_path, in_days(-1), in_days(90))
    monkeypatch.setattr(expiry, "_TIMES", {})
    tls = ServerTLS(os.fspath(tmp_path / "cert.pem"), os.fspath(tmp_path / "key.pem"))
    assert tls.certificate is None
