"""What a lane has found since its last commit: upserts of absolute values, and the pushes that follow from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from analytics_core.records import Insight, Metric, Pattern, ProcessResult, Window
from analytics_core.state import Message, Outputs

_PUSHED_KEPT: Final = 65_536

Topic = Literal["metric", "insight", "pattern"]
Found = Metric | Pattern | Insight
Key = tuple[str, Topic, str]
"""Tenant, topic, and what tells a record apart from others of that topic."""

_json = msgspec.json.Encoder(order="deterministic")


class Pending:
    """Outputs of one lane that wait for its next commit; of equal keys the latest wins.

    A record that equals the last one pushed is stored again but not pushed again; the latest 65 536 are remembered.
    """

    def __init__(self, lane: str) -> None:
        self._lane = lane
        self._found: dict[Key, Found] = {}
        self._pushed: OrderedDict[bytes, bytes] = OrderedDict()
        self._offered: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._found)

    @property
    def found(self) -> Mapping[Key, Found]:
        """All that waits, each record under what tells it apart from others."""
        return self._found

    def add(self, tenant: str, result: ProcessResult) -> None:
        found = self._found
        for metric in result.metrics:
            found[(tenant, "metric", _identity(metric))] = metric
        for pattern in result.patterns:
            found[(tenant, "pattern", pattern.key)] = pattern
        for insight in result.insights:
            found[(tenant, "insight", insight.key)] = insight

    def outputs(self) -> list[Outputs]:
        """All that waits, one `Outputs` per tenant."""
        by_tenant: dict[str, tuple[list[Metric], list[Pattern], list[Insight]]] = {}
        for (tenant, _, _), record in self._found.items():
            metrics, patterns, insights = by_tenant.setdefault(tenant, ([], [], []))
            if isinstance(record, Metric):
                metrics.append(record)
            elif isinstance(record, Pattern):
                patterns.append(record)
            else:
                insights.append(record)
        return [
            Outputs(tenant=tenant, metrics=metrics, patterns=patterns, insights=insights)
            for tenant, (metrics, patterns, insights) in by_tenant.items()
        ]

    def result(self) -> ProcessResult:
        """All that waits, of whatever tenant, as one result."""
        found = list(self._found.values())
        return ProcessResult(
            metrics=[record for record in found if isinstance(record, Metric)],
            patterns=[record for record in found if isinstance(record, Pattern)],
            insights=[record for record in found if isinstance(record, Insight)],
        )

    def messages(self) -> list[Message]:
        """A push for each record that is new or changed; ``id`` names the record, whatever its value."""
        self._offered = {}
        messages = []
        for (tenant, topic, identity), record in self._found.items():
            key = blake2b(f"{self._lane}\0{tenant}\0{topic}\0{identity}".encode(), digest_size=12).digest()
            body = _json.encode(self._body(record))
            seen = blake2b(body, digest_size=12).digest()
            if self._pushed.get(key) == seen:
                continue
            self._offered[key] = seen
            messages.append(Message(id=key.hex(), topic=topic, tenant=tenant, body=body))
        return messages

    def committed(self) -> None:
        """The last `outputs` and `messages` are durable."""
        self._found.clear()
        for key, seen in self._offered.items():
            self._pushed[key] = seen
            self._pushed.move_to_end(key)
        self._offered = {}
        while len(self._pushed) > _PUSHED_KEPT:
            self._pushed.popitem(last=False)

    def _body(self, record: Found) -> dict[str, Any]:
        if isinstance(record, Metric):
            return {
                "metric": f"{self._lane}.{record.name}",
                "value": record.value,
                "window": _window(record.window),
                "labels": record.labels,
                "plugin": self._lane,
                "kind": record.kind,
                "unit": record.unit,
            }
        body: dict[str, Any] = msgspec.to_builtins(record)
        body["window"] = _window(record.window) if record.window else None
        return {"plugin": self._lane, **body}


def _identity(metric: Metric) -> str:
    labels = sorted(metric.labels.items()) if metric.labels else ""
    return f"{metric.name}\0{metric.window.start}\0{metric.window.seconds}\0{metric.kind}\0{labels}"


def _window(window: Window) -> dict[str, datetime]:
    return {"start": window.start, "end": window.start + timedelta(seconds=window.seconds)}
