"""Single parts without a whole run: codecs, the WAL, conversion, and the CPU time of a request."""
