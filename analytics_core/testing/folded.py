"""The checks of `check_plugin` that fold rows. Each gives the reason why it does not apply, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

from analytics_core.events import EventBatch
from analytics_core.host.wire import decode, encode
from analytics_core.testing.case import Case, first_receipt, same_content
from analytics_core.testing.comparing import same, same_outputs, same_state
from analytics_core.testing.generations import generations
from analytics_core.testing.interpreter import go_on, unreachable
from analytics_core.testing.running import carried
from analytics_core.testing.splitting import check_deterministic


def repeats(case: Case) -> str:
    if reason := case.why_not():
        return reason
    same(case.folded(), case.folded(), "a second fresh instance with equal input", "the first")
    return ""


def splits(case: Case) -> str:
    if reason := case.why_not():
        return reason
    check_deterministic(case.plugin, case.rows, case.settings, seed=case.seed)
    return ""


def interpreter(case: Case) -> str:
    if reason := case.why_not(state=True) or unreachable(case.plugin):
        return reason
    given = [*case.batches(), case.closing()]
    half = len(given) // 2
    subject = case.subject()
    for each in given[:half]:
        subject.process(each)
    reply = go_on(case.plugin, case.settings, subject.export(), given[half:], seed=case.seed)
    for found in reply.results:
        subject.add(found)
    expected, how = case.folded(), "the second half in a fresh interpreter"
    same_outputs(expected.outputs, subject.outputs, how, "one instance")
    same_state(expected.state(), carried(reply.state), how, "one instance")
    return ""


def replay(case: Case) -> str:
    if reason := case.why_not():
        return reason
    live = case.subject()
    for each in _with_time_between(case):
        live.process(each)
    how = "live, with batches between that only say that time passes"
    same(case.folded(), live, how, "the replay without them", states=False)
    return ""


def _with_time_between(case: Case) -> Iterator[EventBatch]:
    """Row by row, and between two what an idle log is given: after the one, half way, and just before the other."""
    given = [*case.batches(len(case.rows)), case.closing()]
    for each, following in pairwise(given):
        yield each
        begin = each.watermark
        end = max(begin, first_receipt(following) if len(following) else following.watermark)
        yield from (EventBatch.empty(each.tenant, at) for at in _moments(begin, end))
    yield given[-1]


def _moments(begin: datetime, end: datetime) -> list[datetime]:
    return sorted({begin, begin + (end - begin) / 2, end})


def reload(case: Case) -> str:
    if reason := case.why_not(state=True):
        return reason
    subject = case.subject()
    with generations(case.plugin) as following:
        for each in [*case.batches(), case.closing()]:
            subject.process(each)
            subject.renew(following())
        same(case.folded(), subject, "a new generation after every batch", "one instance")
    return ""


def first(case: Case) -> str:
    if reason := case.why_not():
        return reason
    subject = case.subject()
    given = case.batches()
    begin = first_receipt(given[0]) if len(given[0]) else given[0].watermark
    for tenant in ("unknown", given[0].tenant):
        subject.call("process", batch=EventBatch.empty(tenant, begin))
    for each in [*given, case.closing()]:
        subject.process(each)
    same(case.folded(), subject, "after empty batches first", "the same without them", states=False)
    return ""


def tenants(case: Case) -> str:
    if reason := case.why_not():
        return reason
    subject = case.subject()
    ours, others = [*case.batches(), case.closing()], [*case.batches(tenant="other"), case.closing("other")]
    for each, other in zip(ours, others, strict=True):
        subject.call("process", batch=other)
        subject.process(each)
    same(case.folded(), subject, "with equal events of another tenant between", "the tenant alone", states=False)
    return ""


def export(case: Case) -> str:
    if reason := case.why_not(state=True):
        return reason
    subject = case.subject()
    for each in [*case.batches(), case.closing()]:
        subject.process(each)
        same_state(subject.state(), subject.state(), "exported twice", "the first time")
    same(case.folded(), subject, "with export_state after every batch", "the same without it")
    return ""


def batches(case: Case) -> str:
    hooks = [hook for hook in ("process", "enrich") if hasattr(case.plugin, hook)]
    for hook in hooks:
        subject = case.subject()
        for each in [*case.batches(), case.closing()]:
            kept: EventBatch = decode(encode(each), EventBatch)
            subject.call(hook, batch=each)
            for name in ("tenant", "watermark"):
                was, now = getattr(kept, name), getattr(each, name)
                assert was == now, f"{hook} has changed batch.{name} from {was!r} to {now!r}"
            assert same_content(each.record_batch, kept.record_batch), f"{hook} has changed the columns of its batch"
    return "" if hooks else "no hook of it is given a batch"
