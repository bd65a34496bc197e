"""The supervisor: the process that starts, watches, restarts, upgrades and stops the others."""
