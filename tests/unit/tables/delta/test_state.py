"""The state of a table from its log, and the tables that arcpipe leaves alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.tables.base import Refused
from arcpipe.tables.delta.state import EMPTY, State, app_id, digest_of, require_usable

PROTOCOL = {"minReaderVersion": 1, "minWriterVersion": 2}
FIELD = {"name": "time", "type": "timestamp", "nullable": True, "metadata": {}}


def metadata(fields: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    schema = json.dumps({"type": "struct", "fields": [FIELD] if fields is None else fields})
    return {"id": "x", "format": {"provider": "parquet"}, "schemaString": schema, "partitionColumns": []} | more


def lines(*actions: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, actions)).encode()


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2**62)), max_size=3), max_size=6))
def test_the_last_marker_of_each_node_counts(commits: list[list[tuple[str, int]]]) -> None:
    state = EMPTY
    expected: dict[str, int] = {}
    for commit in commits:
        before = dict(state.markers)
        earlier = state
        state = state.after(
            state.version + 1, lines(*({"txn": {"appId": app_id(node), "version": seq}} for node, seq in commit))
        )
        assert earlier.markers == before  # a state that was handed out stays as it is
        expected.update(commit)
    assert state.node_markers() == expected
    assert state.version == len(commits) - 1


def test_markers_of_other_programs_are_no_nodes() -> None:
    state = EMPTY.after(0, lines({"txn": {"appId": "a stream of Spark", "version": 7}}))
    assert state.node_markers() == {}
    assert state.marker("a stream of Spark") is None


def test_metadata_and_protocol_of_the_last_commit_count() -> None:
    state = EMPTY.after(0, lines({"protocol": PROTOCOL}, {"metaData": metadata()}, {"add": {"path": "x"}}))
    assert state.protocol == PROTOCOL
    assert state.fields == [FIELD]
    later = state.after(1, lines({"metaData": metadata([FIELD, {**FIELD, "name": "v"}])}, {"remove": {}}))
    assert [field["name"] for field in later.fields] == ["time", "v"]
    assert later.protocol is state.protocol
    assert later.digest == digest_of(lines({"metaData": metadata([FIELD, {**FIELD, "name": "v"}])}, {"remove": {}}))


def test_lines_of_other_writers_may_have_spaces() -> None:
    state = EMPTY.after(0, b'\n  { "txn" : {"appId": "arcpipe.node.n", "version": 3}}\r\n\n{"unknown": {"x": 1}}\n')
    assert state.marker("n") == 3


@pytest.mark.parametrize(
    "commit", [b"{", b"\x00\x00\x00", b"[]", b"1", b'{"a": {}, "b": {}}', b'{"txn": {"appId": "x"}}']
)
def test_a_damaged_commit_is_told(commit: bytes) -> None:
    with pytest.raises((ValueError, KeyError)):
        EMPTY.after(0, commit)


def usable(protocol: dict[str, Any], metadata: dict[str, Any]) -> None:
    require_usable(State(0, b"", protocol, metadata), "file:///lake/db/cpu")


@pytest.mark.parametrize(
    "protocol",
    [
        PROTOCOL,
        {"minReaderVersion": 1, "minWriterVersion": 4},
        {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [], "writerFeatures": ["appendOnly"]},
        {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": ["timestampNtz"],
            "writerFeatures": ["timestampNtz", "invariants", "changeDataFeed"],
        },
    ],
)
def test_tables_of_others_that_ask_for_nothing_are_taken(protocol: dict[str, Any]) -> None:
    usable(protocol, metadata(configuration={"delta.enableChangeDataFeed": "true"}))


@pytest.mark.parametrize(
    ("protocol", "content", "reason"),
    [
        ({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}, {}, "deletionVectors"),
        ({"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": ["rowTracking"]}, {}, "rowTracking"),
        ({"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": ["v2Checkpoint"]}, {}, "v2Checkpoint"),
        ({"minReaderVersion": 4, "minWriterVersion": 8}, {}, "4 and 8"),
        (
            {"minReaderVersion": 2, "minWriterVersion": 5},
            {"configuration": {"delta.columnMapping.mode": "name"}},
            "column mapping",
        ),
        (PROTOCOL, {"partitionColumns": ["day"]}, "partitioned by day"),
        (PROTOCOL, {"format": {"provider": "orc"}}, "orc"),
        (PROTOCOL, {"configuration": {"delta.setTransactionRetentionDuration": "interval 1 day"}}, "forgets"),
        (PROTOCOL, {"configuration": {"delta.constraints.positive": "v > 0"}}, "DROP CONSTRAINT"),
        (PROTOCOL, {"fields": [{**FIELD, "metadata": {"delta.invariants": "{}"}}]}, "an invariant"),
        (PROTOCOL, {"fields": [{**FIELD, "metadata": {"delta.generationExpression": "1"}}]}, "compute"),
        (PROTOCOL, {"fields": [{**FIELD, "metadata": {"delta.identity.start": 1}}]}, "count"),
        (PROTOCOL, {"schemaString": "{"}, "schema cannot be read"),
    ],
)
def test_a_table_that_asks_for_more_is_refused(protocol: dict[str, Any], content: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        usable(protocol, metadata(**content))
