"""Reports of results: progress, tables, comparisons, charts, pages and JSON."""
