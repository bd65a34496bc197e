"""OTLP: export requests of logs, traces and metrics -> rows of tables.

    outcome = encode(body, check, signal="logs", promote=("host.name",))

Reference: https://opentelemetry.io/docs/specs/otlp/ and the messages of opentelemetry-proto 1.9.

All three requests are lists of resources, these of scopes, and these of items. Columns have the names that the exporter
for ClickHouse made usual; attributes are JSON text. A JSON body is made protobuf first (`json_form`), so there is one
way from bytes to columns.
"""
