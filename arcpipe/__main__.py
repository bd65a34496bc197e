"""The program: `python -m arcpipe`, and the console script `arcpipe`."""

from __future__ import annotations

import os
import sys

from arcpipe.supervisor import signals


def main() -> None:
    """Runs a command line. A server holds its signals back before the libraries are loaded."""
    _have_standard_files()
    if sys.argv[1:2] == ["serve"] and not {"--check", "--help"} & set(sys.argv):
        signals.hold()
    from arcpipe.cli import main as cli

    cli.main()


def _have_standard_files() -> None:
    """Open what is closed of stdin, stdout and stderr: else the log is written to the next file."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


if __name__ == "__main__":
    main()
