"""Results: latencies, runs, suites, and the JSON file that holds them."""
