"""`arcpipe init`: writes a first `config.toml`, and what runs and watches a server, into a directory.

The files come from `arcpipe/share`. In a checkout these are links to the repository's own files, so each text is there
once; a wheel has copies.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from arcpipe import __version__
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.disk import Disk

# Where the unit expects the program, unless `init` knows a better place.
_PROGRAM: Final = "/opt/arcpipe/bin/arcpipe"
# What the unit's sandbox hides (ProtectHome= and PrivateTmp=).
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
# A path that a unit may have as it is: systemd reads blanks, quotes, % and $ in ways of its own.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._+@:,=~-]+")


class _File(NamedTuple):
    """A file that `init` writes."""

    path: Path
    content: bytes
    is_there: bool  # with this very content


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it is made if it is not there.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there and differ.")] = False,
) -> None:
    """Write config.toml, units of systemd, alerts and a dashboard into a directory.

    config.toml has every setting, at its default, with its explanation. A file that is there and differs stops the
    command before anything is written.

    \b
    Example:
      arcpipe init && arcpipe serve
    """
    files = list(_files(directory))
    differ = [str(file.path) for file in files if not file.is_there and os.path.lexists(file.path)]
    if differ and not force:
        raise ArcpipeError(
            f"{', '.join(differ)}: there already, with another content. Nothing was written. "
            "Choose another directory, or replace what is there by arcpipe init --force"
        )
    from arcpipe.disk import Disk

    disk = Disk()
    for file in files:
        if not file.is_there:
            _write(disk, file)
        print("unchanged" if file.is_there else "written  ", file.path)
    print(_next_steps(directory))


def _files(directory: Path) -> Iterator[_File]:
    """Yield what is to be in the directory.

    Raises:
        ArcpipeError: a file of this name is there and cannot be read.
    """
    share = importlib.resources.files("arcpipe") / "share"
    for name, source in _walk(share, ""):
        path = directory / name
        content = source.read_bytes()
        if name == "systemd/arcpipe.service":
            content = content.replace(_PROGRAM.encode(), _program().encode())
        yield _File(path, content, _content(path) == content)


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for child in sorted(folder.iterdir(), key=lambda child: (child.is_dir(), child.name)):
        if child.is_dir():
            yield from _walk(child, f"{prefix}{child.name}/")
        else:
            yield prefix + child.name, child


def _content(path: Path) -> bytes | None:
    """Return the content of a file, or None if the file does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArcpipeError(f"cannot read {path}: {error.strerror}. Nothing was written.") from error


def _write(disk: Disk, file: _File) -> None:
    from arcpipe import durable

    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(disk, str(file.path), file.content)
    except OSError as error:
        raise ArcpipeError(
            f"cannot write {file.path}: {error.strerror}. It is as it was; what is told as written above is complete. "
            "Run the command again once this is mended."
        ) from error


def _own_path() -> str:
    """Return the path of the running program; empty if it has none of its own, as under `python -m`."""
    path = os.path.abspath(sys.argv[0])
    return path if os.path.basename(path) == "arcpipe" and os.access(path, os.X_OK) else ""


def _program() -> str:
    """Return the program that the unit starts: this one, if the service can see it and a unit can name it."""
    own = _own_path()
    return own if _PLAIN.fullmatch(own) and not own.startswith(_HIDDEN) else _PROGRAM


def _next_steps(directory: Path) -> str:
    """Return what to do next."""
    path = directory / "config.toml"
    settings, units = shlex.quote(str(path)), shlex.quote(str(directory / "systemd"))
    config = "" if path.resolve() == Path("config.toml").resolve() else f" --config {settings}"
    lines = [
        "",
        "Next:",
        f"  1. Read and change {settings}: storage.url and wal.dir before all.",
        f"  2. arcpipe config check{config}",
        f"  3. arcpipe serve{config}",
        "",
        "As a service under systemd, as root:",
        *([f"  {_installation()}"] if _program() == _PROGRAM != _own_path() else []),
        f"  install -D -m 644 {units}/arcpipe.sysusers /etc/sysusers.d/arcpipe.conf && systemd-sysusers",
        f"  install -D -m 640 {settings} /etc/arcpipe/config.toml",
        f"  install -D -m 644 {units}/arcpipe.tmpfiles /etc/tmpfiles.d/arcpipe.conf && systemd-tmpfiles --create",
        f"  install -D -m 644 {units}/arcpipe.service /etc/systemd/system/arcpipe.service",
        "  systemctl daemon-reload && systemctl enable --now arcpipe",
    ]
    return "\n".join(lines)


def _installation() -> str:
    """Return what installs this version, and its native kernel if it is here, where the service can see it."""
    from arcpipe.native import KERNEL

    what = f"arcpipe=={__version__}" if KERNEL is None else f"'arcpipe[native]=={__version__}'"
    return f"python3 -m venv /opt/arcpipe && /opt/arcpipe/bin/pip install {what}"
