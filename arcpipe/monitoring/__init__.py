"""Monitoring: a snapshot of all counters, and health issues, metrics and the status page made from it."""
