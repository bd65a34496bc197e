"""The program: `python -m arcpipe`, and the console script `arcpipe`."""

from __future__ import annotations

import os
import sys

from arcpipe import signals


def main() -> None:
    """Runs a command line. A server holds its signals back before the libraries are loaded."""
    _have_standard_files()
    if sys.argv[1:2] == ["serve"] and not {"--check", "--help"} & set(sys.argv):
        signals.hold()
    from arcpipe import cli

    cli.main()


def _have_standard_files() -> None:
    """Open stdin, stdout and stderr if they are closed: the next file that is opened would receive the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


if __name__ == "__main__":
    main()
