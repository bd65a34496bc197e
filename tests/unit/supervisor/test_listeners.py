"""Which sockets a program takes over, which it makes, and which of them nobody else may take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from arcpipe.config.listeners import parse_listeners
from arcpipe.config.settings import Auth, Server, Settings
from arcpipe.errors import ArcpipeError
from arcpipe.supervisor import holders, unix_socket
from arcpipe.supervisor.listeners import LISTENER, Listeners, discard
from arcpipe.supervisor.service_manager import InheritedFd
from tests.support.http import free_port

WORKERS = 2


@pytest.fixture
def port() -> int:
    """One that is free on every address."""
    return free_port()


def settings(host: str, port: int, *others: str) -> Settings:
    listeners = parse_listeners(json.dumps([{"address": other} for other in others]), is_text=True)
    return Settings(server=Server(host=host, port=port, listeners=listeners), auth=Auth(allow_anonymous=True))


def bound(host: str, port: int, *others: str, inherited: Listeners | None = None) -> tuple[Listeners, int]:
    """The listeners of a program that was another one before, and how many sockets of that fit nowhere."""
    listeners = Listeners(settings(host, port, *others), WORKERS)
    unfit = listeners.bind([] if inherited is None else copies(inherited))
    return listeners, unfit


def copies(listeners: Listeners) -> list[InheritedFd]:
    """Return the sockets that it hands over, which its own objects do not close."""
    return [InheritedFd(name, os.dup(fd)) for name, fd in listeners.handed_over]


def addresses(listeners: Listeners) -> list[str]:
    """Of all workers' sockets."""
    found = [one.socket.getsockname()[0] for slot in (1, 2) for one in listeners.of_worker(slot)]
    return sorted(found)


def test_an_address_that_includes_the_former_one_is_taken_too(port: int) -> None:
    """An address that includes the former one is taken in addition to its sockets."""
    former, _ = bound("127.0.0.1", port)
    later, unfit = bound("0.0.0.0", port, inherited=former)
    assert unfit == 0
    assert addresses(later) == ["0.0.0.0", "0.0.0.0", "127.0.0.1", "127.0.0.1"]
    assert later.urls == [f"http://0.0.0.0:{port}"]
    assert len(later.kept) == len(later.handed_over) == 4
    last, unfit = bound("0.0.0.0", port, inherited=later)
    assert (unfit, len(addresses(last)), last.made) == (0, 4, [])
    for one in (former, later, last):
        one.close()


def test_an_address_that_is_narrower_is_taken_and_the_former_one_is_closed(port: int) -> None:
    former, _ = bound("0.0.0.0", port)
    for bound_socket in former.of_worker(1):
        bound_socket.socket.listen()
    later, unfit = bound("127.0.0.1", port, inherited=former)
    assert (unfit, addresses(later)) == (2, ["127.0.0.1"] * 2)
    former.close()
    with socket.create_connection(("127.0.0.2", port)):  # still: nobody has said that it is time
        later.settle()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))
    later.close()


def test_an_address_that_another_listener_has_exactly_stays_its_own(port: int) -> None:
    former, _ = bound("127.0.0.1", port)
    for one in (*former.of_worker(1), *former.of_worker(2)):
        one.socket.listen()
    later, unfit = bound("0.0.0.0", port, f"127.0.0.1:{port}", inherited=former)
    assert (unfit, len(addresses(later))) == (0, 4)
    assert later.urls == [f"http://0.0.0.0:{port}", f"http://127.0.0.1:{port}"]
    former.close()
    later.close()
    fresh, _ = bound("0.0.0.0", port, f"127.0.0.1:{port}")
    assert len(addresses(fresh)) == 4
    fresh.close()


def test_every_ipv6_address_is_no_ipv4_address(port: int) -> None:
    both, _ = bound("::", port, f"0.0.0.0:{port}")  # the one does not take the other's
    assert sorted(addresses(both)) == ["0.0.0.0", "0.0.0.0", "::", "::"]
    both.close()


def test_sockets_of_a_version_that_took_both_are_closed_for_new_ones(port: int) -> None:
    former = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True)
    later = Listeners(settings("::", port, f"0.0.0.0:{port}"), WORKERS)
    assert later.bind([InheritedFd(LISTENER, former.detach())]) == 1
    later.settle()
    assert addresses(later) == ["0.0.0.0", "0.0.0.0", "::", "::"]
    later.close()


def test_a_check_leaves_nothing_and_sees_what_a_start_would(port: int, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    wanted = settings("127.0.0.1", port, f"unix:{path}")
    Listeners(wanted, WORKERS).check()
    with socket.socket() as holder, socket.socket(socket.AF_UNIX) as other:
        holder.bind(("127.0.0.1", port))
        with pytest.raises(ArcpipeError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            Listeners(wanted, WORKERS).check()
        holder.close()
        other.bind(str(path))
        other.listen()
        with pytest.raises(ArcpipeError, match="another process listens there"):
            Listeners(wanted, WORKERS).check()
    Listeners(wanted, WORKERS).check()  # the file is stale by now
    held = unix_socket.lock(str(path), [])  # by one that starts at this moment
    with pytest.raises(ArcpipeError, match=f"another arcpipe holds {path}.lock"):
        Listeners(wanted, WORKERS).check()
    held.release()
    Listeners(wanted, WORKERS).check()
    os.unlink(f"{path}.lock")
    os.mkdir(f"{path}.lock")  # as one that another user has made, it cannot be opened
    for look in (Listeners(wanted, WORKERS).check, lambda: Listeners(wanted, WORKERS).bind([])):
        with pytest.raises(ArcpipeError, match=f"cannot listen on unix:{path}: Is a directory"):
            look()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("no-such-host.invalid", "cannot listen on no-such-host.invalid port"),
        ("192.0.2.1", "Cannot assign requested address"),
        (f"{'x' * 70}.example", "not a host name"),
        ("a..example", "not a host name"),
    ],
)
def test_a_host_that_is_none_of_this_machine_is_refused_by_start_and_check(host: str, reason: str, port: int) -> None:
    wanted = settings(host, port)
    with pytest.raises(ArcpipeError, match=reason):
        Listeners(wanted, WORKERS).check()
    with pytest.raises(ArcpipeError, match=reason):
        Listeners(wanted, WORKERS).bind([])


def test_who_holds_a_port_and_a_path_is_found(port: int, tmp_path: Path) -> None:
    path = str(tmp_path / "with a blank.sock")
    me = os.getpid()
    assert not holders.holds_port(me, "127.0.0.1", port)
    assert not holders.holds_path(me, path)
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", port))
        tcp.listen()
        unix.bind(path)
        unix.listen()
        assert holders.holds_port(me, "127.0.0.1", port)
        assert holders.holds_path(me, path)
        with socket.socket() as other:  # as another program has it: not in this process's hands
            other.bind(("127.0.0.2", port))
            other.listen()
            with subprocess.Popen(["sleep", "60"], pass_fds=[other.fileno()]) as program:
                other.close()
                assert holders.holds_port(me, "127.0.0.1", port)
                assert not holders.holds_port(me, "127.0.0.2", port)
                assert not holders.holds_port(me, "0.0.0.0", port)
                program.kill()
        assert not holders.holds_port(os.getppid(), "127.0.0.1", port)
        assert not holders.holds_path(os.getppid(), path)
        assert not holders.holds_port(0, "127.0.0.1", port)


def test_what_another_process_has_made_in_vain_is_gone_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    made, _ = bound("127.0.0.1", 0, f"unix:{path}")
    assert len(made.made) == WORKERS + 2  # and the lock of the path
    discard([InheritedFd(name, os.dup(fd)) for name, fd in made.made])
    assert not path.exists()
    made.close()


def test_a_unix_socket_gets_its_mode_when_it_is_taken_over(
    tmp_path: Path,
) -> None:
    """A unix socket that is taken over gets the mode of the settings and not before it is time."""
    path = tmp_path / "a.sock"
    former, _ = bound("127.0.0.1", 0, f"unix:{path}")
    inode = path.stat().st_ino
    wanted = parse_listeners([{"address": f"unix:{path}", "mode": "0600"}], is_text=False)
    later = Listeners(Settings(server=Server(port=0, listeners=wanted)), WORKERS)
    assert later.bind(copies(former)) == 0
    assert path.stat().st_mode & 0o777 == 0o660
    later.settle()
    assert (path.stat().st_mode & 0o777, path.stat().st_ino) == (0o600, inode)
    former.close()
    later.close()


@pytest.mark.parametrize(
    "words", [("localhost:{}", "127.0.0.1:{}"), ("[::1]:{}", "[0:0::1]:{}"), ("unix:a", "unix:./a")]
)
def test_one_address_in_other_words_is_refused_by_start_and_check(
    words: tuple[str, str], port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both could be bound, and the kernel would give a connection to either, whatever its paths are."""
    monkeypatch.chdir(tmp_path)
    first, second = (text.format(port) for text in words)
    wanted = settings("", 0, first, second)
    for look in (Listeners(wanted, WORKERS).check, lambda: Listeners(wanted, WORKERS).bind([])):
        with pytest.raises(ArcpipeError, match="are one address") as told:
            look()
        assert str(told.value).startswith(f"{first} and {second} are")
    assert list(tmp_path.iterdir()) == []
