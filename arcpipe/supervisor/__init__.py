"""The supervisor: starts, watches, restarts, upgrades and stops the other processes."""
