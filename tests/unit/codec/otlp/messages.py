"""Random requests of OTLP, made with the messages of the SDK."""

from __future__ import annotations

import random
from typing import Any, Final

from tests.unit.codec.otlp.reading import REQUESTS

NOW: Final = 1_700_000_000_000_000_000
TEXTS: Final = ("", "a", "checkout", 'a "quoted"\n\\ text\x01', "Ärger 🔥", "x" * 126, "y" * 200)
DOUBLES: Final = (0.0, -0.0, 0.1, 1e300, float("nan"), float("inf"), float("-inf"), 5e-324)


class Maker:
    """Makes requests of a random shape."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def request(self, signal: str, most: int = 4) -> Any:
        """A request of up to `most` resources, scopes and items each."""
        request = REQUESTS[signal]()
        for _ in range(self.few(most)):
            resource = getattr(
                request, {"logs": "resource_logs", "traces": "resource_spans"}.get(signal, "resource_metrics")
            ).add()
            if self.chance.random() < 0.9:
                self.attributes(resource.resource.attributes)
                if self.chance.random() < 0.8:
                    resource.resource.attributes.add(key="service.name").value.string_value = self.text()
            resource.schema_url = self.text()
            for _ in range(self.few(most)):
                scope = getattr(
                    resource, {"logs": "scope_logs", "traces": "scope_spans"}.get(signal, "scope_metrics")
                ).add()
                if self.chance.random() < 0.8:
                    scope.scope.name, scope.scope.version = self.text(), self.text()
                    self.attributes(scope.scope.attributes)
                scope.schema_url = self.text()
                for _ in range(self.few(most)):
                    getattr(self, f"_{signal}")(scope)
        return request

    def few(self, most: int) -> int:
        return self.chance.randrange(most + 1)

    def text(self) -> str:
        return self.chance.choice(TEXTS)

    def double(self) -> float:
        return self.chance.choice([*DOUBLES, self.chance.random()])

    def time(self) -> int:
        return self.chance.choice([0, NOW, NOW + self.chance.getrandbits(40), (1 << 63) - 1])

    def count(self) -> int:
        return self.chance.choice([0, 1, 127, 128, self.chance.getrandbits(50), (1 << 63) - 1])

    def identity(self, size: int) -> bytes:
        return self.chance.randbytes(self.chance.choice([0, size, size, size, 3]))

    def attributes(self, pairs: Any, depth: int = 0) -> None:
        for key in self.chance.sample(["http.method", "host.name", "k", 'q"', "Ä", "n" * 130, ""], self.few(4)):
            self.value(pairs.add(key=key).value, depth)

    def value(self, value: Any, depth: int = 0) -> None:
        kind = self.chance.randrange(9 if depth < 3 else 6)
        if kind <= 1:
            value.string_value = self.text()
        elif kind == 2:
            value.bool_value = self.chance.random() < 0.5
        elif kind == 3:
            value.int_value = self.chance.choice([0, 1, -1, 1 << 53, (1 << 63) - 1, -(1 << 63)])
        elif kind == 4:
            value.double_value = self.double()
        elif kind == 5:
            value.bytes_value = self.chance.randbytes(self.few(5))
        elif kind == 6:
            value.array_value.SetInParent()
            for _ in range(self.few(3)):
                self.value(value.array_value.values.add(), depth + 1)
        elif kind == 7:
            value.kvlist_value.SetInParent()
            self.attributes(value.kvlist_value.values, depth + 1)

    def _logs(self, scope: Any) -> None:
        one = scope.log_records.add()
        one.time_unix_nano, one.observed_time_unix_nano = self.time(), self.time()
        one.severity_number, one.severity_text = self.few(24), self.text()
        if self.chance.random() < 0.9:
            self.value(one.body)
        self.attributes(one.attributes)
        one.trace_id, one.span_id = self.identity(16), self.identity(8)
        one.flags, one.event_name, one.dropped_attributes_count = (
            self.chance.getrandbits(32),
            self.text(),
            self.few(200),
        )

    def _traces(self, scope: Any) -> None:
        one = scope.spans.add()
        one.trace_id, one.span_id, one.parent_span_id = self.identity(16), self.identity(8), self.identity(8)
        one.trace_state, one.name, one.kind, one.flags = self.text(), self.text(), self.few(5), self.few(300)
        one.start_time_unix_nano, one.end_time_unix_nano = self.time(), self.time()
        self.attributes(one.attributes)
        for _ in range(self.few(2)):
            event = one.events.add(time_unix_nano=self.time(), name=self.text())
            self.attributes(event.attributes)
        for _ in range(self.few(2)):
            link = one.links.add(trace_id=self.identity(16), span_id=self.identity(8), trace_state=self.text())
            self.attributes(link.attributes)
        if self.chance.random() < 0.7:
            one.status.code, one.status.message = self.few(2), self.text()
        one.dropped_events_count = self.few(300)

    def _metrics(self, scope: Any) -> None:
        metric = scope.metrics.add(name=self.text(), description=self.text(), unit=self.text())
        kind = self.chance.choice(["gauge", "sum", "histogram", "exponential_histogram", "summary", ""])
        if not kind:
            return
        data = getattr(metric, kind)
        data.SetInParent()
        if kind == "sum":
            data.is_monotonic = self.chance.random() < 0.5
        if kind not in ("gauge", "summary"):
            data.aggregation_temporality = self.few(2)
        for _ in range(self.few(3)):
            one = data.data_points.add(start_time_unix_nano=self.time(), time_unix_nano=self.time(), flags=self.few(1))
            self.attributes(one.attributes)
            self._point(kind, one)

    def _point(self, kind: str, one: Any) -> None:
        chance = self.chance
        if kind in ("gauge", "sum"):
            self._number(one)
        elif kind == "summary":
            one.count, one.sum = self.count(), self.double()
            for _ in range(self.few(3)):
                one.quantile_values.add(quantile=self.double(), value=self.double())
            return
        else:
            one.count = self.count()
            for name in ("sum", "min", "max"):
                if chance.random() < 0.6:
                    setattr(one, name, self.double())
        if kind == "histogram":
            one.bucket_counts.extend(self.count() for _ in range(self.few(4)))
            one.explicit_bounds.extend(self.double() for _ in range(self.few(4)))
        elif kind == "exponential_histogram":
            one.scale, one.zero_count, one.zero_threshold = self.few(20) - 10, self.count(), self.double()
            for side in (one.positive, one.negative):
                if chance.random() < 0.7:
                    side.offset = self.few(400) - 200
                    side.bucket_counts.extend(self.count() for _ in range(self.few(4)))
        for _ in range(self.few(2)):
            exemplar = one.exemplars.add(
                time_unix_nano=self.time(), trace_id=self.identity(16), span_id=self.identity(8)
            )
            self._number(exemplar)
            self.attributes(exemplar.filtered_attributes)

    def _number(self, one: Any) -> None:
        kind = self.few(2)
        if kind == 0:
            one.as_double = self.double()
        elif kind == 1:
            one.as_int = self.chance.choice([0, -1, 1 << 53, (1 << 63) - 1])
