"""Sockets go back from the process that has tried a start."""

from __future__ import annotations

import os
import socket

from arcpipe.supervisor.service_manager import InheritedFd
from arcpipe.supervisor.startup import receive_fds, send_fds


def test_more_sockets_than_a_message_takes_go_back_with_their_names() -> None:
    """More sockets than a message takes go back with their names and only to this program."""
    back, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with back, theirs, socket.socket() as one:
        fds = [InheritedFd("listener", one.fileno())] * 600 + [InheritedFd("socket-lock", one.fileno())] * 3
        send_fds(theirs, fds)
        found = receive_fds(back)
        assert [name for name, _ in found] == [name for name, _ in fds]
        # Else a program that is executed later would hold these addresses without knowing of them.
        assert not any(os.get_inheritable(fd) for _, fd in found)
        assert all(os.path.sameopenfile(fd, one.fileno()) for _, fd in found)
        for _, fd in found:
            os.close(fd)
        assert receive_fds(back) == []


def test_nothing_comes_back_from_a_process_that_has_ended() -> None:
    back, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with back:
        assert receive_fds(back) == []
