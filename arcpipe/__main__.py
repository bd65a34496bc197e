"""`python -m arcpipe`: the same as the console script `arcpipe`."""

from arcpipe.cli import main

main()
