"""The checks of `check_plugin` that fold rows, and the subject of all: a class, and rows cut into batches as a log
gives them. A check gives the reason why it does not apply, or nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.events import EventBatch
from analytics_core.host.code.generation import Generation
from analytics_core.host.running.wire import decode, encode
from analytics_core.records import PluginContext
from analytics_core.testing.declared import as_it_is, context_of, generations
from analytics_core.testing.interpreter import go_on, unreachable
from analytics_core.testing.rows import Row, batch
from analytics_core.testing.running import (
    Call,
    Folded,
    Subject,
    carried,
    running,
    same,
    same_calls,
    same_outputs,
    same_state,
)

_CLOSING: Final = timedelta(days=2)
"""After so long without events every run is told once more that time has passed."""
_SPLITS: Final = 2


def check_deterministic(
    plugin_class: type, rows: Sequence[Row], settings: Mapping[str, Any] | None = None, *, seed: int = 0
) -> None:
    """Check that the fold knows no batches: rows in log order give the same outputs and state however they are split.

    They are folded whole, one by one, and split at random, each batch under its own watermark; in the split runs every
    batch goes to a new instance that takes over the exported state. Each run ends with an empty batch two days later.

    :raises AssertionError: naming the split and what differs.
    """
    splits(Case(plugin_class, rows, settings or {}, seed))


class Case:
    """What is checked: ``rows`` in log order, folded under ``settings``."""

    def __init__(self, plugin: type, rows: Sequence[Row], settings: Mapping[str, Any], seed: int) -> None:
        self.plugin = plugin
        self.rows = rows
        self.settings = settings
        self.seed = seed

    @cached_property
    def code(self) -> Generation:
        return as_it_is(self.plugin)

    @cached_property
    def context(self) -> PluginContext:
        return context_of(self.plugin, self.settings)

    @cached_property
    def reference(self) -> Folded:
        """`batches` and the closing one, in one instance."""
        return self.fold(self.given())

    @property
    def hooks(self) -> frozenset[str]:
        return self.code.hooks

    def subject(self) -> Subject:
        """A fresh instance, set up at the begin of its ``with`` and torn down at the end."""
        return Subject(running(self.code, self.context), self.code.manifest.reload.state_version)

    def fold(self, given: Iterable[EventBatch]) -> Folded:
        with self.subject() as subject:
            for each in given:
                subject.process(each)
            return subject.folded()

    def batches(self, most: int = 8, tenant: str = "default") -> list[EventBatch]:
        """The rows in up to ``most`` batches, cut at random."""
        inner = range(1, len(self.rows))
        return self.cut(random.Random(self.seed).sample(inner, max(0, min(most - 1, len(inner)))), tenant)

    def cut(self, cuts: Iterable[int], tenant: str = "default") -> list[EventBatch]:
        """The rows in batches that begin at ``cuts``; the watermark of each is the latest receipt so far."""
        whole = batch(self.rows, tenant)
        made: list[EventBatch] = []
        for low, high in pairwise([0, *sorted(cuts), len(whole)]):
            part = whole.record_batch.slice(low, high - low)
            latest = pc.max(part.column("received_at")).as_py() or whole.watermark
            made.append(EventBatch(part, tenant, max([latest, *(each.watermark for each in made[-1:])])))
        return made

    def closing(self, tenant: str = "default") -> EventBatch:
        """Time enough after the last row to close everything."""
        return EventBatch.empty(tenant, batch(self.rows).watermark + _CLOSING)

    def given(self, tenant: str = "default") -> list[EventBatch]:
        """`batches` and the closing one."""
        return [*self.batches(tenant=tenant), self.closing(tenant)]

    def why_not(self, *, state: bool = False) -> str:
        """Why checks of a fold, or of its ``state``, do not apply; empty when they do."""
        if "process" not in self.hooks:
            return "it has no process"
        return "stateless: it has no export_state" if state and "export_state" not in self.hooks else ""


def repeats(case: Case) -> str:
    if reason := case.why_not():
        return reason
    expected, again = case.reference, case.fold(case.given())
    how = "a second fresh instance with equal input"
    same_calls(expected.calls, again.calls, how, "the first")
    same(expected, again, how, "the first")
    return ""


def splits(case: Case) -> str:
    if reason := case.why_not():
        return reason
    inner = range(1, len(case.rows))
    expected = _split(case, [], carry=False)
    if "export_state" in case.hooks:
        choose = random.Random(case.seed)
        for count in [len(inner), *(choose.randint(0, len(inner)) for _ in range(_SPLITS))]:
            cuts = sorted(choose.sample(inner, count))
            same(expected, _split(case, cuts, carry=True), f"split at {cuts}", "one batch")
    same(expected, _split(case, inner, carry=False), "one by one without export", "one batch")
    return ""


def _split(case: Case, cuts: Iterable[int], *, carry: bool) -> Folded:
    with case.subject() as subject:
        for each in case.cut(cuts):
            subject.process(each)
            if carry:
                subject.renew(case.code, case.context)
        subject.process(case.closing())
        return subject.folded()


def interpreter(case: Case) -> str:
    if reason := case.why_not(state=True) or unreachable(case.plugin):
        return reason
    given = case.given()
    half = len(given) // 2
    with case.subject() as subject:
        for each in given[:half]:
            subject.process(each)
        reply = go_on(case.plugin, case.settings, subject.export(), given[half:], seed=case.seed)
    there = [Call(each.tenant, result) for each, result in zip(given[half:], reply.results, strict=True)]
    got = Folded([*subject.calls, *there], carried(reply.state))
    same(case.reference, got, "the second half in a fresh interpreter", "one instance")
    return ""


def replay(case: Case) -> str:
    if reason := case.why_not():
        return reason
    live = case.fold(_with_time_between(case))
    how = "live, with batches between that only say that time passes"
    same_outputs(case.reference.calls, live.calls, how, "the replay without them")
    return ""


def _with_time_between(case: Case) -> Iterator[EventBatch]:
    """Row by row, and between two what an idle log is given: after the one, half way, and just before the other."""
    given = [*case.batches(len(case.rows)), case.closing()]
    for each, following in pairwise(given):
        yield each
        begin = each.watermark
        end = max(begin, _first_receipt(following) if len(following) else following.watermark)
        yield from (EventBatch.empty(each.tenant, at) for at in _moments(begin, end))
    yield given[-1]


def _moments(begin: datetime, end: datetime) -> list[datetime]:
    return sorted({begin, begin + (end - begin) / 2, end})


def _first_receipt(each: EventBatch) -> datetime:
    """When the first row of a batch was received."""
    found: datetime = each.column("received_at")[0].as_py()
    return found


def reload(case: Case) -> str:
    if reason := case.why_not(state=True):
        return reason
    with generations(case.plugin) as following, case.subject() as subject:
        for each in case.given():
            subject.process(each)
            subject.renew(following(), case.context)
        same(case.reference, subject.folded(), "a new generation after every batch", "one instance")
    return ""


def first(case: Case) -> str:
    if reason := case.why_not():
        return reason
    given = case.given()
    begin = _first_receipt(given[0]) if len(given[0]) else given[0].watermark
    with case.subject() as subject:
        for tenant in ("unknown", given[0].tenant):
            subject.call("process", batch=EventBatch.empty(tenant, begin))
        for each in given:
            subject.process(each)
    same_outputs(case.reference.calls, subject.calls, "after empty batches first", "the same without them")
    return ""


def tenants(case: Case) -> str:
    if reason := case.why_not():
        return reason
    names = ("other", "default", "part")
    alone = {tenant: case.fold(_events_of(case, tenant)).calls for tenant in names}
    turns = zip(*(_events_of(case, tenant) for tenant in names), strict=True)
    together = case.fold(chain.from_iterable(turns)).calls
    for tenant in names:
        got = [call for call in together if call.tenant == tenant]
        same_calls(alone[tenant], got, f"tenant {tenant!r} with the events of others between", "the tenant alone")
    return ""


def _events_of(case: Case, tenant: str) -> list[EventBatch]:
    """The same for all, but for one that has every other event only: what the others have more must not show there."""
    given = case.given(tenant)
    if tenant != "part":
        return given
    return [each.filter(each.column("seq").to_numpy() % 2 == 1) if len(each) else each for each in given]


def export(case: Case) -> str:
    if reason := case.why_not(state=True):
        return reason
    with case.subject() as subject:
        for each in case.given():
            subject.process(each)
            same_state(subject.state(), subject.state(), "exported twice", "the first time")
        same(case.reference, subject.folded(), "with export_state after every batch", "the same without it")
    return ""


def batches(case: Case) -> str:
    hooks = sorted({"process", "enrich"} & case.hooks)
    for hook in hooks:
        with case.subject() as subject:
            for each in case.given():
                kept: EventBatch = decode(encode(each), EventBatch)
                subject.call(hook, batch=each)
                for name in ("tenant", "watermark"):
                    was, now = getattr(kept, name), getattr(each, name)
                    assert was == now, f"{hook} has changed batch.{name} from {was!r} to {now!r}"
                assert _same_content(each.record_batch, kept.record_batch), f"{hook} has changed its batch's columns"
    return "" if hooks else "no hook of it is given a batch"


def _same_content(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    return bool(left.schema.equals(right.schema) and left.equals(right))
