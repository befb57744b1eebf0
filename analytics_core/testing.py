"""What plugin authors test with: batches from plain rows, a plugin run over them, and a reader over rows in memory.

    from analytics_core.testing import MemoryReader, batch, check_deterministic, run

    result = run(MyPlugin, [batch([{"event": "click", "user_id": "u1", "timestamp": "2025-01-01T12:00:00Z"}])])

Nothing here starts a server or a thread. The reader is the one that the host uses, over rows instead of files.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from analytics_core.errors import QueryError, near
from analytics_core.events import SCHEMA, EventBatch, micros, moment
from analytics_core.events.times import parse_time
from analytics_core.manifest import checked_settings, read_plugin
from analytics_core.metrics.buckets import buckets
from analytics_core.queries.reader import Reader, ReaderSpec
from analytics_core.queries.tail import Tail
from analytics_core.records import Insight, Metric, Pattern, PluginContext, ProcessResult, Series, TimeRange

START: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""When a row happens that says nothing about time; each later row of the batch comes a second later."""

_KEYS: Final = ("event", *(name for name in SCHEMA.names if name != "tenant"))
_SPLITS: Final = 2

Row = Mapping[str, Any]


def batch(
    rows: Sequence[Row], tenant: str = "default", watermark: datetime | None = None, *, first_seq: int = 0
) -> EventBatch:
    """An `EventBatch` of plain dicts, in log order; without rows an empty one, which says that time has passed.

    Keys are the columns of `events.SCHEMA`, with ``event`` for ``name``; only the name is required. Times are
    datetimes, ISO 8601 or epoch; ``received_at`` defaults to ``timestamp`` and the other way round. ``properties`` and
    ``context`` are dicts, or JSON objects as text. ``seq`` counts from ``first_seq``; ``watermark`` defaults to the
    latest ``received_at``.

    :raises TypeError: for an unknown key, or properties that JSON cannot hold.
    :raises ValueError: for a time that is none.
    """
    plain = [_plain(row, tenant, first_seq + index, START + timedelta(seconds=index)) for index, row in enumerate(rows)]
    columns = [pa.array([row[field.name] for row in plain], field.type) for field in SCHEMA]
    record_batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    latest = max((row["received_at"] for row in plain), default=micros(START))
    return EventBatch(record_batch, tenant, watermark or moment(latest))


def _plain(row: Row, tenant: str, seq: int, default: datetime) -> dict[str, Any]:
    for key in row:
        if key not in _KEYS:
            raise TypeError(f"row {seq}: unknown key {key!r}{near(key, _KEYS)}")
    timestamp = row.get("timestamp", row.get("received_at", default))
    return {
        "partition": 0,
        "seq": seq,
        "event_id": f"e{seq}",
        "user_id": None,
        "anonymous_id": None,
        "session_id": None,
        "source": "native",
        **row,
        "tenant": tenant,
        "name": row["event"] if "event" in row else row["name"],
        "timestamp": _micros(timestamp),
        "received_at": _micros(row.get("received_at", timestamp)),
        "properties": _json(row.get("properties", {})),
        "context": _json(row.get("context", {})),
    }


def _json(value: Mapping[str, Any] | str) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _micros(value: datetime | str | float) -> int:
    return micros(value) if isinstance(value, datetime) else parse_time(value)


# --- running a plugin ------------------------------------------------------------------------------------------------


def run(plugin_class: type, batches: Iterable[EventBatch], settings: Mapping[str, Any] | None = None) -> ProcessResult:
    """Fold ``batches`` with a fresh instance and merge what it gave: of equal keys the latest, as the store keeps it.

    ``settings`` are checked against the ``plugin.yaml`` beside the plugin's module and filled up with its defaults.
    """
    subject = _Subject(plugin_class, settings)
    for each in batches:
        subject.process(each)
    subject.call("teardown")
    return subject.result()


def started(plugin_class: type, settings: Mapping[str, Any] | None = None) -> Any:
    """A fresh instance after ``setup``, to call hooks of directly."""
    return _Subject(plugin_class, settings).instance


def check_deterministic(
    plugin_class: type, rows: Sequence[Row], settings: Mapping[str, Any] | None = None, *, seed: int = 0
) -> None:
    """Check that the fold knows no batches: rows in log order give the same outputs and state however they are split.

    They are folded whole, one by one, and split at random; in the split runs every batch goes to a new instance that
    takes over the exported state. Each run ends with an empty batch two days later.

    :raises AssertionError: naming the split and what differs.
    """
    expected = _fold(plugin_class, rows, [], settings, carry=False)
    inner = range(1, len(rows))
    choose = random.Random(seed)
    for count in [len(inner), *(choose.randint(0, len(inner)) for _ in range(_SPLITS))]:
        cuts = sorted(choose.sample(inner, count))
        _compare(expected, _fold(plugin_class, rows, cuts, settings, carry=True), f"split at {cuts}")
    _compare(expected, _fold(plugin_class, rows, list(inner), settings, carry=False), "one by one without export")


def _fold(
    plugin_class: type, rows: Sequence[Row], cuts: Sequence[int], settings: Mapping[str, Any] | None, *, carry: bool
) -> tuple[ProcessResult, Any]:
    subject = _Subject(plugin_class, settings)
    whole = batch(rows)
    parts = [whole.record_batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    for part in parts:
        subject.process(EventBatch(part, whole.tenant, whole.watermark))
        if carry:
            subject.renew()
    subject.process(EventBatch.empty(whole.tenant, whole.watermark + timedelta(days=2)))
    return subject.result(), subject.call("export_state")


def _compare(expected: tuple[ProcessResult, Any], got: tuple[ProcessResult, Any], how: str) -> None:
    for kind in ("metrics", "patterns", "insights"):
        theirs, ours = getattr(got[0], kind), getattr(expected[0], kind)
        different = [(a, b) for a, b in zip(ours, theirs, strict=False) if a != b]
        assert not different, f"{how}: {different[0][1]} where one batch gives {different[0][0]}"
        assert len(theirs) == len(ours), f"{how}: {len(theirs)} {kind} where one batch gives {len(ours)}"
    assert got[1] == expected[1], f"{how}: the exported state differs from that of one batch"


class _Subject:
    """One instance and the merged outputs so far; `renew` hands its state to another instance."""

    def __init__(self, plugin_class: type, settings: Mapping[str, Any] | None) -> None:
        self._class = plugin_class
        self._context, self._version = _context(plugin_class, settings or {})
        self._metrics: dict[Any, Metric] = {}
        self._patterns: dict[str, Pattern] = {}
        self._insights: dict[str, Insight] = {}
        self.instance = self._start()

    def _start(self) -> Any:
        self.instance = self._class()
        self.call("setup", context=self._context)
        return self.instance

    def renew(self) -> None:
        if hasattr(self.instance, "export_state"):
            state = self.call("export_state")
            self._start()
            self.call("import_state", state=state, version=self._version)

    def process(self, each: EventBatch) -> None:
        found = self.call("process", batch=each) or ProcessResult()
        for metric in found.metrics:
            key = (metric.name, metric.window.start, metric.window.seconds, *sorted(metric.labels.items()))
            self._metrics[key] = metric
        self._patterns.update((pattern.key, pattern) for pattern in found.patterns)
        self._insights.update((insight.key, insight) for insight in found.insights)

    def result(self) -> ProcessResult:
        """Sorted by identity, so that two results can be compared."""
        tables: tuple[dict[Any, Any], ...] = (self._metrics, self._patterns, self._insights)
        return ProcessResult(*([table[key] for key in sorted(table)] for table in tables))

    def call(self, hook: str, **arguments: Any) -> Any:
        method = getattr(self.instance, hook, None)
        if method is None:
            return None
        taken = inspect.signature(method).parameters
        given = method(**{name: value for name, value in arguments.items() if name in taken})
        return asyncio.run(given) if inspect.iscoroutine(given) else given


def _context(plugin_class: type, settings: Mapping[str, Any]) -> tuple[PluginContext, int]:
    path = Path(inspect.getfile(plugin_class)).with_name("plugin.yaml")
    logger = logging.getLogger(plugin_class.__module__)
    if not path.exists():  # a class in a test file
        return PluginContext(name=plugin_class.__name__, settings=dict(settings), logger=logger), 1
    manifest = read_plugin(path)
    checked = checked_settings(manifest, settings)
    return PluginContext(name=manifest.name, settings=checked, logger=logger), manifest.reload.state_version


# --- asking a plugin -------------------------------------------------------------------------------------------------


class MemoryReader(Reader):
    """The `EventReader` of the host over batches in memory: real SQL, real types. Use it as a context manager.

    ``range`` defaults to the whole days of ``timezone`` that hold events. ``metrics`` are the series that `metric`
    knows by name beside the counts of events.
    """

    def __init__(
        self,
        batches: Sequence[EventBatch],
        range: TimeRange | None = None,  # noqa: A002
        *,
        timezone: str = "UTC",
        metrics: Mapping[str, Series] | None = None,
    ) -> None:
        table = pa.Table.from_batches([each.record_batch for each in batches], SCHEMA).unify_dictionaries()
        asked = range or _whole_days(table, timezone)
        tenant = batches[0].tenant if batches else "default"
        spec = ReaderSpec(
            files=(), position=0, durable=len(table), tenant=tenant, range=asked, metrics=_Known(dict(metrics or {}))
        )
        super().__init__(spec, Tail(table, batches[-1].watermark if batches else None), ExitStack())


def _whole_days(table: pa.Table, timezone: str) -> TimeRange:
    at = table["timestamp"].cast(pa.int64()).to_numpy()
    first, last = (int(at.min()), int(at.max())) if len(at) else (micros(START), micros(START))
    edges = buckets(moment(first), moment(last + 1), "day", timezone).edges
    return TimeRange(moment(int(edges[0])), moment(int(edges[-1])), timezone)


class _Known:
    """Metrics by name: given series, and the count of an event."""

    def __init__(self, given: dict[str, Series]) -> None:
        self._given = given

    def series(self, reader: Reader, name: str, interval: str) -> Series:
        if name in self._given:
            return self._given[name]
        spans = buckets(reader.range.start, reader.range.end, interval, reader.range.timezone)
        found = reader.sql("SELECT epoch_us(timestamp) AS at FROM events WHERE name = $name", {"name": name})
        if not len(found):
            raise QueryError(f"no metric and no event is named {name!r}{near(name, self._given)}")
        counts = np.bincount(spans.assign(found["at"].to_numpy()), minlength=len(spans))
        steps = np.diff(spans.edges)
        return Series(
            metric=name, at=spans.edges[:-1], values=counts.astype(np.float64), step_seconds=int(steps[0]) // 1_000_000
        )
