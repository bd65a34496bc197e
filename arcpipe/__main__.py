"""The program: `python -m arcpipe`, and the console script `arcpipe`."""

from __future__ import annotations

import io
import os
import sys

from arcpipe import libraries
from arcpipe.supervisor import signals

_INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended, as shells have it


def main() -> None:
    """Run a command line. Ctrl-C ends it without a traceback, also while libraries are loaded."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _run() -> None:
    """Run a command line; a server blocks its signals before the libraries are loaded."""
    _have_standard_files()
    _take_all_names()
    if sys.argv[1:2] == ["serve"] and not {"--check", "--help"} & set(sys.argv):
        signals.hold()
    libraries.leave_out_unused()
    from arcpipe.cli import serving

    plain = serving.plain(sys.argv[1:])
    if plain is not None:
        serving.end_by_code(lambda: serving.run(plain))
    with libraries.loading():
        from arcpipe.cli import main as cli

    cli.main()


def _have_standard_files() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed.

    Else the next file that is opened gets the number of stderr, and the log goes into it. Python prints errors to
    stdout where stderr is closed.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def _take_all_names() -> None:
    """Print what the encoding of stdout does not have as an escape, instead of failing.

    That is the dash of a missing figure in ASCII and Latin-1, and the name of a file that is no text.
    """
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and (stdout.encoding, stdout.errors) != ("utf-8", "surrogateescape"):
        stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
