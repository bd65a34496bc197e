"""Prometheus remote write 1.0 and 2.0: protobuf messages -> rows of tables.

    outcome = encode(body, check, version=1, layout=Layout())

References: https://prometheus.io/docs/specs/prw/remote_write_spec/ and …/remote_write_spec_2_0/

Labels are JSON text, one object for each series, without the name of the metric, which has a column of its own. A
series that is against the specification is left out and reported; a body that is no protobuf is refused as a whole.
"""
