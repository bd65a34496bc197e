"""The benchmark harness: `python -m benchmarks`, or `make bench`.

Starts the real server as a user would, loads it over HTTP from processes of its own, stops it, and counts in the
Parquet files what was acknowledged. A figure whose records are not all there is no figure: the run fails.

    __main__    the command line
    suites      what is measured: cases, their settings and their load
    rounds      all rounds of a suite
    run         one run: server, load, samples over time, drain, verification
    recovery    a start on the log that a crash left
    logs        such logs, and backlogs
    device      the disk alone: a bare loop of writes and syncs
    target      a server that already runs
    server      the server as a child process, and what it uses of the machine
    load        the load generator, a process of its own
    drive       several load generators, started and followed together
    listeners   which processes are behind an address
    usage       who used the cores meanwhile
    children    child processes that do not outlive the harness
    bodies      request bodies
    histogram   latencies as an HdrHistogram
    results     what a run gives, as it is written to JSON, and what several runs say together
    outputs     where results go: terminal, JSON, charts, pages
    report      tables
    compare     two files of results, side by side
    charts      pictures
    markdown    the tables of docs/benchmarks.md
    progress    what goes on, and how long it will take
    machine     what the figures were measured on

Nothing here is imported by arcpipe. What is measured is used by its command line, its settings and HTTP alone; its code
makes the logs that a start finds.
"""
