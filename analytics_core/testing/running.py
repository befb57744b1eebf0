"""A plugin run over batches, without any host."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from analytics_core.events import EventBatch
from analytics_core.host.answers import checked_answer
from analytics_core.lanes.checkpoint import pack, unpack, value_of
from analytics_core.records import Insight, Metric, Pattern, ProcessResult
from analytics_core.testing.declared import context_of

Found = Metric | Pattern | Insight
Key = tuple[Any, ...]
Outputs = dict[Key, Found]
"""Output records by kind and identity."""


def run(plugin_class: type, batches: Iterable[EventBatch], settings: Mapping[str, Any] | None = None) -> ProcessResult:
    """Fold ``batches`` with a fresh instance and merge what it gave: of equal keys the latest, as the store keeps it.

    ``settings`` are checked against the ``plugin.yaml`` beside the plugin's module and filled up with its defaults.
    """
    subject = Subject(plugin_class, settings)
    for each in batches:
        subject.process(each)
    subject.call("teardown")
    return subject.result()


def started(plugin_class: type, settings: Mapping[str, Any] | None = None) -> Any:
    """A fresh instance after ``setup``, to call hooks of directly."""
    return Subject(plugin_class, settings).instance


class Subject:
    """One instance and the merged ``outputs`` so far; `renew` hands its state to another instance."""

    def __init__(self, plugin_class: type, settings: Mapping[str, Any] | None = None) -> None:
        self._class = plugin_class
        self._context, self._version = context_of(plugin_class, settings or {})
        self.outputs: Outputs = {}
        self.instance: Any = None
        self._start(plugin_class)

    def _start(self, plugin_class: type) -> None:
        self.instance = plugin_class()
        self.call("setup", context=self._context)

    @property
    def stateful(self) -> bool:
        return self.has("export_state")

    def has(self, hook: str) -> bool:
        return hasattr(self.instance, hook)

    def renew(self, generation: type | None = None) -> None:
        """Go on with a fresh instance, of another ``generation`` of the class when it is given."""
        if self.stateful:
            envelope = self.export()
            self._start(generation or self._class)
            self.restore(envelope)

    def export(self) -> bytes:
        """The state as a checkpoint holds it. :raises TypeError: for one that is neither bytes nor a JSON value."""
        return pack(self.call("export_state"), {})

    def restore(self, envelope: bytes, version: int | None = None) -> None:
        """Take over what `export` gave, under another ``version`` when it is given."""
        self.call("import_state", state=carried(envelope), version=version or self._version)

    def state(self) -> Any:
        """The state as another generation is given it; None without ``export_state``."""
        return carried(self.export()) if self.stateful else None

    def process(self, each: EventBatch) -> ProcessResult:
        found = self.call("process", batch=each) or ProcessResult()
        self.add(found)
        return found

    def add(self, found: ProcessResult) -> None:
        self.outputs.update(keyed(found))

    def result(self) -> ProcessResult:
        """Sorted by identity, so that two results can be compared."""
        records = [self.outputs[key] for key in sorted(self.outputs)]
        return ProcessResult(
            [record for record in records if isinstance(record, Metric)],
            [record for record in records if isinstance(record, Pattern)],
            [record for record in records if isinstance(record, Insight)],
        )

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook with those of ``arguments`` that it takes; None when the plugin does not have it.

        :raises WrongAnswerError: for an answer that the host would refuse.
        """
        method = getattr(self.instance, hook, None)
        if method is None:
            return None
        taken = inspect.signature(method).parameters
        given = method(**{name: value for name, value in arguments.items() if name in taken})
        return checked_answer(hook, asyncio.run(given) if inspect.iscoroutine(given) else given, arguments)


def carried(envelope: bytes) -> Any:
    """The state that `Subject.export` gave, as ``import_state`` is given it: tuples have become lists."""
    return value_of(unpack(envelope))


def keyed(found: ProcessResult) -> Outputs:
    """Each record under what tells it apart from others, as the store does."""
    outputs: Outputs = {}
    for metric in found.metrics:
        window = metric.window
        outputs["metric", metric.name, window.start, window.seconds, *sorted(metric.labels.items())] = metric
    outputs.update((("pattern", pattern.key), pattern) for pattern in found.patterns)
    outputs.update((("insight", insight.key), insight) for insight in found.insights)
    return outputs
