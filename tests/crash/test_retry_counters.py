"""Whatever makes the uploader try again is counted under its kind, and under no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.counters import RETRY_KINDS
from arcpipe.upload.spares import SPARES as SPARE_FILES
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALWriter
from tests.crash.small_disks import small_disk
from tests.crash.steps import Step
from tests.crash.uploader_process import Outcome, Uploaders
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.stores import s3_store

SPARES = len(SPARE_FILES)  # they are made first
S3_CHECK = "arcpipe.storage.s3:S3Store.check"


@pytest.fixture(scope="module")
def uploaders() -> Iterator[Uploaders]:
    with Uploaders() as uploaders:
        yield uploaders


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A log directory with one completed segment."""
    writer = WALWriter(str(tmp_path / "wal"), 1)
    group = Group()
    body = msgspec.msgpack.encode({"m": "cpu", "columns": {"time": [1_767_225_600], "value": [1]}})
    group.add(envelope_prefix(KIND_COLUMNAR, "default"), body, 1, writer.next_timestamp())
    writer.commit(group)
    writer.close()
    return tmp_path / "wal"


def counted(outcome: Outcome) -> dict[str, int]:
    counts = {kind: outcome.counters[f"retries_{kind}"] for kind in RETRY_KINDS}
    return {kind: count for kind, count in counts.items() if count}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("reset in the body", "connection"),
        ("lost answer", "connection"),
        ("request timeout", "timeout"),
        ("slow down", "throttled"),
        ("too many requests", "throttled"),
        ("internal error", "server_error"),
        ("clock skew", "clock_skew"),
    ],
)
def test_a_fault_of_a_put_is_counted_once_under_its_kind(
    fault: str, kind: str, wal: Path, s3: S3Bucket, proxy: FaultyProxy, uploaders: Uploaders
) -> None:
    proxy.fail_next(fault)
    settings = s3_store(s3, wal).settings | {"storage_s3_endpoint_url": proxy.url}
    outcome = uploaders.run(wal, settings)
    assert outcome.exit_code == 0
    assert counted(outcome) == {kind: 1}


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"storage_s3_endpoint_url": "http://no-such-host.invalid:9000"}, "dns"),
        ({"storage_s3_endpoint_url": "http://127.0.0.1:1"}, "connection"),
        ({"storage_url": "s3://no-such-bucket-anywhere/lake"}, "missing_bucket"),
        ({"storage_s3_access_key_id": "somebody-else"}, "credentials"),
    ],
)
def test_a_store_that_cannot_be_used_is_counted_with_every_try(
    wrong: dict[str, object], kind: str, wal: Path, s3: S3Bucket, proxy: FaultyProxy, uploaders: Uploaders
) -> None:
    proxy.access_key_id = s3.access_key_id
    settings = s3_store(s3, wal).settings | {"storage_s3_endpoint_url": proxy.url} | wrong
    # It tries for ever; so it is killed.
    outcome = uploaders.run(wal, settings, die=Step(S3_CHECK, "before", 3))
    assert counted(outcome) == {kind: 2}


def test_a_server_that_does_not_answer_in_time_is_counted_as_a_timeout(
    wal: Path, s3: S3Bucket, proxy: FaultyProxy, uploaders: Uploaders
) -> None:
    proxy.fail_next("hanging")
    settings = s3_store(s3, wal).settings | {"storage_s3_endpoint_url": proxy.url}
    patience = {"arcpipe.storage.s3:S3Store.__init__.__kwdefaults__": {"read_timeout_seconds": 0.3}}
    outcome = uploaders.run(wal, settings, constants=patience)
    assert outcome.exit_code == 0
    assert counted(outcome) == {"timeout": 1}


def test_a_full_disk_is_counted_as_such(wal: Path, uploaders: Uploaders, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "tmpfs", 1) as disk:
        disk.fill()
        settings = {"storage_url": f"file://{disk.path}/lake"}
        outcome = uploaders.run(wal, settings, die=Step("arcpipe.storage.local:LocalStore.check", "before", 3))
    assert counted(outcome) == {"no_space": 2}


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Step("arcpipe.storage.local:LocalStore._put", "before"), "other"),
        (Step("arcpipe.disk:Disk.fsync", "before", 1 + SPARES), "disk"),
    ],
)
def test_an_error_of_the_store_s_disk_is_told_from_one_of_the_log_s(
    step: Step, kind: str, wal: Path, uploaders: Uploaders, tmp_path: Path
) -> None:
    outcome = uploaders.run(wal, {"storage_url": f"file://{tmp_path}/lake"}, fail=step)
    assert outcome.exit_code == 0
    assert counted(outcome) == {kind: 1}
