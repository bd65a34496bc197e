"""The real server, started by its command line, and real clients."""
