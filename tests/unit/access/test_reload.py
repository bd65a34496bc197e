"""A reload: what it could not use is told until one could."""

from __future__ import annotations

from pathlib import Path

from arcpipe.access.reload import Changeable
from arcpipe.config.settings import WAL, Auth, Settings
from arcpipe.counters import Counters
from arcpipe.errors import ConfigError
from arcpipe.monitoring import health, snapshot
from arcpipe.wal.directory import WALDirectory


def test_what_a_reload_refused_is_an_issue_until_one_is_whole(tmp_path: Path) -> None:
    """A token that was revoked is accepted until then, and only the log told."""
    WALDirectory(tmp_path).make()
    path = tmp_path / "tokens.toml"
    path.write_text("# no tokens\n")
    path.chmod(0o600)
    settings = Settings(wal=WAL(dir=str(tmp_path)), auth=Auth(enabled=True, tokens_file=str(path)))
    counters = Counters(1)
    problem: list[ConfigError] = []

    def load() -> Settings:
        if problem:
            raise problem[0]
        return settings

    def told() -> list[str]:
        taken = snapshot.take(settings, counters, [])
        issues = [issue.message for issue in health.judge(taken) if issue.code == "reload_refused"]
        assert len(issues) == bool(taken.reload_refused)
        assert all(part in issue for issue in issues for part in taken.reload_refused)
        return taken.reload_refused

    access = Changeable(settings, load, counters)
    access.read()
    assert told() == []
    path.write_text("[[token]]\nid = 5\n")
    access.reload()
    assert told() == ["the tokens file"]
    problem.append(ConfigError("server.port = 99999: allowed: a whole number from 0 to 65535"))
    access.reload()
    assert told() == ["the settings", "the tokens file"]
    path.write_text("# no tokens\n")
    access.reload()
    assert told() == ["the settings"]
    problem.clear()
    access.reload()
    assert told() == []
