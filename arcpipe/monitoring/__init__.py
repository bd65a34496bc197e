"""Monitoring: a snapshot of all counters, and what health, metrics and the status page make of it."""
