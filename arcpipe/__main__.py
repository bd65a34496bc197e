"""The program: `python -m arcpipe`, and the console script `arcpipe`."""

from __future__ import annotations

import sys

from arcpipe.supervisor import signals


def main() -> None:
    """Runs a command line. A server holds its signals back before the libraries are loaded."""
    if sys.argv[1:2] == ["serve"] and not {"--check", "--help"} & set(sys.argv):
        signals.hold()
    from arcpipe.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
