"""Operations on settings: reloads, tokens, upgrades, the clock."""

from __future__ import annotations

import os
import signal
import socket
import time

from tests.crash.day.model import Effects
from tests.crash.day.operations.base import SERVING, STAYS, TOO_SLOW, TRIES, Acting


class SettingsOperations(Acting):
    """Operations on settings: reloads, tokens, upgrades, the clock."""

    def reload(self) -> Effects:
        self._instance.configure(level=self._chance.choice(["DEBUG", "INFO"]))
        self._reload()
        return Effects()

    def reload_bad(self) -> Effects:
        instance = self._instance
        good = instance.tokens.read_bytes()
        text = "the settings are refused, and the log level stays as it was"
        match self._chance.choice(["level", "syntax", "tokens"]):
            case "level":
                instance.configure(level="LOUD")
            case "syntax":
                instance.config.write_text("[server\n")
            case _:
                text = "the tokens file is refused, and the former tokens stay in force"
                instance.tokens.write_bytes(b"[[token]]\nid = 1\n")
        before = instance.lines(text)
        self._reload()
        assert instance.lines(text) > before
        self._load.wait_for_calm()
        instance.tokens.write_bytes(good)
        instance.configure()
        return Effects()

    def signals(self) -> Effects:
        """Many at once, some of them to processes that have no use for them."""
        instance = self._instance
        useless = [signal.SIGHUP, signal.SIGINT, signal.SIGUSR2]
        for pid in instance.pids().values():
            for _ in range(5):
                os.kill(pid, signal.SIGHUP if pid == instance.pid else self._chance.choice(useless))
        self._reload()
        return Effects()

    def rotate_tokens(self) -> Effects:
        """Without a gap, as the documentation has it: make one, reload, change over, revoke the old one, reload."""
        instance = self._instance
        old, new = instance.token, instance.create_token("write")
        self._reload()
        with self._load.paused():
            instance.token = new
        instance.revoke_token(old)
        self._reload()
        for _ in range(4):  # at both workers, most likely
            assert self._load.try_token(old).status == 401
        return Effects()

    def upgrade(self) -> Effects:
        instance = self._instance
        instance.host = self._chance.choice(["127.0.0.1", "0.0.0.0"])
        instance.workers = self._chance.choice([1, 2, 2, 3])
        instance.sync_mode = self._chance.choice(["fdatasync", "fsync", "async"])
        instance.configure()
        for _ in range(TRIES):
            since = time.monotonic()
            serving, stays, slow = map(instance.lines, (SERVING, STAYS, TOO_SLOW))
            os.kill(instance.pid, signal.SIGUSR2)
            self._wait_for_upgrade(serving, stays)
            if instance.lines(SERVING) > serving:
                self._model.note_start(since)
                return Effects(restarted=True)
            assert instance.lines(TOO_SLOW) > slow, "a good upgrade was refused"
        raise AssertionError(f"{TRIES} trials in a row took too long")

    def upgrade_bad(self) -> Effects:
        instance = self._instance
        pids, before = instance.pids(), instance.lines(STAYS)
        files = {path: path.read_bytes() for path in (instance.wal / "node.json", instance.tokens)}
        host = instance.host
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            match self._chance.choice(["port", "wal", "node", "host", "level", "tokens"]):
                case "port":
                    instance.configure(port=taken.getsockname()[1])
                case "wal":
                    instance.configure(wal=instance.directory / "other")
                case "node":
                    (instance.wal / "node.json").write_bytes(b"{")
                case "host":
                    instance.host = "no-such-host.invalid"
                    instance.configure()
                case "level":
                    instance.configure(level="LOUD")
                case _:
                    instance.tokens.write_bytes(b"[[token]]\nid = 1\n")
            os.kill(instance.pid, signal.SIGUSR2)
            instance.wait_for_line(STAYS, before)
        for path, content in files.items():
            path.write_bytes(content)
        instance.host = host
        instance.configure()
        assert instance.pids() == pids
        return Effects()

    def step_clock(self) -> Effects:
        self._instance.clock.set(self._chance.choice([-7200.0, -3.0, 0.0, 3.0, 18000.0]))
        return Effects()
