"""The benchmarks: `python -m benchmarks`, or `make bench`.

The harness starts the real server as a user would, loads it over HTTP from other processes, and stops it. Then it
counts the acknowledged records in the Parquet files. If a record is missing, the run fails and gives no figure.

    __main__    the command line
    options     its options, by subject; `grouping` makes a command of such groups
    suites/     cases with their settings, and the runs that measure and verify them
    report/     progress, tables, comparisons, charts, pages, JSON
    load/       request bodies, the load generator, several generators driven together
    results/    latencies, runs, suites: the JSON file
    system/     the machine, child processes, the server, its listeners, the use of the cores
    micro/      single parts without a whole run, each a command of its own
    worst/      worst cases of bodies, connections and clients, each a command of its own
    tests/      tests of all of these

Packages import each other in one direction: worst, micro, suites, report, load, results, system. arcpipe imports
nothing of them. The suites use its command line, settings and HTTP alone; only the WAL that a start finds is written by
its code.
"""
