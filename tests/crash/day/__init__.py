"""The parts of a day of random operations, which `tests/crash/test_day.py` runs.

instance    the server: its settings, clock, disk, stderr and store, each of which may go wrong
load        clients that write numbered records without a break, and know what became of each
operations  what may happen to the instance, each with what of it clients and figures may notice
model       what has to be true after each operation
"""
