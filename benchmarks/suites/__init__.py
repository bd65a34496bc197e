"""Suites: their cases and settings, and the runs that measure and verify them."""
