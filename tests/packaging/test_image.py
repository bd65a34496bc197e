"""The image: built, run as its Dockerfile says, killed, and its volume's power cut.

`make test-image` runs it: it takes minutes, root, buildah and bubblewrap, so an ordinary run skips it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arcpipe
from tests.crash.small_disks import small_disk
from tests.packaging.container import IMAGE, Container, build_image, buildah, scratch, what_is_missing
from tests.support.careful_load import CarefulLoad
from tests.support.lake import numbers
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("ARCPIPE_TEST_IMAGE") != "1", reason="builds an image: `make test-image` runs it"
    ),
    pytest.mark.timeout(2400),
]

KILLS = 3
QUICKLY = {"ARCPIPE_SERVER_WORKERS": "2", "ARCPIPE_WAL_MIN_FREE_MB": "16", "ARCPIPE_UPLOADER_INTERVAL_SECONDS": "1"}
OPEN = {"ARCPIPE_AUTH_ALLOW_ANONYMOUS": "true"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    if missing := what_is_missing():
        pytest.exit(f"no image can be built and run here: {missing}", returncode=1)  # it was asked for, so not skipped
    yield build_image(tmp_path_factory.mktemp("image"))
    buildah("rmi", "--prune", check=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = scratch()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def container(image: dict[str, Any], folder: Path) -> Iterator[Container]:
    volume = folder / "volume"
    volume.mkdir()
    log = folder / "log"
    with Container(image["config"], volume, log, **OPEN, **QUICKLY) as made:
        yield made
    print(log.read_text()[-8000:])


def test_it_says_what_it_is_and_is_small(image: dict[str, Any]) -> None:
    config = image["config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/var/lib/arcpipe"]
    assert config["Labels"]["org.opencontainers.image.version"] == arcpipe.__version__
    assert re.fullmatch(r"[0-9a-f]{40}", config["Labels"]["org.opencontainers.image.revision"])
    [size] = re.findall(
        r"^\S+:\S+ +([0-9.]+) MB$", buildah("images", "--format", "{{.Name}}:{{.Tag}} {{.Size}}", IMAGE)
    )
    print(f"{size} MB")
    assert float(size) < 400


def test_it_runs_read_only_as_pid_1_of_its_own_user(container: Container) -> None:
    container.start()
    assert container.run("cat", "/proc/1/comm").stdout.strip().startswith("arcpipe")
    status = Path(f"/proc/{container.init}/status").read_text()
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    written = container.run("touch", "/opt/arcpipe/x")
    assert "Read-only file system" in written.stderr
    parts = json.loads(container.run("cat", "/opt/arcpipe/sbom.cdx.json").stdout)["components"]
    assert {"arcpipe", "pyarrow", "aiobotocore"} <= {part["name"] for part in parts}
    container.run("sh", "-c", "sleep 0.1 & exec true")  # whose parent has died: it is pid 1's to reap
    wait_until(lambda: "sleep" not in container.children(), "pid 1 to reap a child that is not its own")
    for path in ("/health", "/ready", "/metrics", "/"):
        assert container.get(path) == 200
    with CarefulLoad(container.url) as load:
        load.wait_for(100)
    assert load.failures == []
    assert container.stop() == 0
    assert numbers(container.lake) == sorted(load.acknowledged)


def test_kill_9_under_load_loses_and_doubles_nothing(container: Container) -> None:
    container.start()
    with CarefulLoad(container.url) as load:
        for _ in range(KILLS):
            load.wait_for_acknowledged(200)
            container.kill()
            container.start()
        load.wait_for_acknowledged(200)
    assert container.stop() == 0
    found = numbers(container.lake)
    assert set(load.acknowledged) <= set(found)
    assert len(found) == len(set(found))
    print(f"{len(load.acknowledged)} acknowledged over {KILLS} kills, {len(found)} found")


def test_a_power_cut_of_the_volume_loses_nothing(image: dict[str, Any], folder: Path) -> None:
    """What was not synced is gone, of the WAL and of the lake. Promised is what was answered before a cut began."""
    with small_disk(folder / "volume", "ext4", 512) as disk:
        with Container(image["config"], disk.path, folder / "log", **OPEN, **QUICKLY) as container:
            container.start()
            promised: list[int] = []
            first = 0
            with CarefulLoad(container.url) as load:
                for _ in range(KILLS):
                    load.wait_for_acknowledged(200)
                    promised += load.acknowledged[first:]
                    disk.cut_power()
                    container.kill()
                    disk.power_on()
                    first = len(load.acknowledged)
                    container.start()
                load.wait_for_acknowledged(200)
            promised += load.acknowledged[first:]
            assert container.stop() == 0
            found = numbers(container.lake)
            assert set(promised) <= set(found)
            assert len(found) == len(set(found))
            print(f"{len(promised)} promised over {KILLS} cuts, {len(found)} found")
        print((folder / "log").read_text()[-8000:])
