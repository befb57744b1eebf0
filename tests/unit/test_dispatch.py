"""Calling hooks: answers checked, failures named, deadlines kept, hung calls given up."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analytics_core.errors import HookFailedError, HookTimeoutError
from analytics_core.events import Event, EventBatch
from analytics_core.hookspecs import HOOKS, hookimpl
from analytics_core.host.code.dispatch import Instance
from analytics_core.host.code.threads import MAX_HUNG
from analytics_core.records import (
    Answer,
    Condition,
    Delivery,
    Enrichment,
    Insight,
    Metric,
    Pattern,
    ProcessResult,
    Question,
    Reply,
    Series,
    TimeRange,
    TrainReport,
    Window,
)

START = datetime(2025, 1, 1, tzinfo=UTC)
BATCH = EventBatch.empty("default", START)
QUESTION = Question(analysis="a", tenant="default", range=TimeRange(START, START))
SERIES = Series(metric="m", at=np.arange(3), values=np.zeros(3), step_seconds=60)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "setup": {"context": None},
    "teardown": {},
    "process": {"batch": BATCH},
    "export_state": {},
    "import_state": {"state": None, "version": 1},
    "erase": {"tenant": "t", "ids": ["a"]},
    "ingest": {"request": None},
    "reply": {"request": None, "outcome": None},
    "enrich": {"batch": BATCH},
    "insight": {"question": QUESTION, "events": None},
    "alert": {"signals": None},
    "deliver": {"notification": None, "channel": None},
    "train": {"model": None, "events": None},
    "score": {"series": SERIES},
}
Make = Callable[..., Instance]


@pytest.fixture
def make() -> Iterator[Make]:
    """An instance whose hooks are the given functions without ``self``."""
    made: list[Instance] = []

    def build(**hooks: Callable[..., Any]) -> Instance:
        plugin = type("Plugin", (), {name: hookimpl(staticmethod(function)) for name, function in hooks.items()})
        made.append(Instance("shop", plugin(), frozenset(hooks)))
        return made[-1]

    yield build
    for instance in made:
        instance.close()


def metric(**changes: Any) -> Metric:
    return Metric(**{"name": "m", "value": 1.0, "window": Window(START), **changes})


def processed(**changes: Any) -> ProcessResult:
    return ProcessResult([metric(), metric(**changes)])


def test_the_arguments_are_all_known() -> None:
    assert ARGUMENTS.keys() == HOOKS


GOOD: list[tuple[str, Any]] = [
    ("setup", None),
    ("teardown", None),
    ("import_state", None),
    ("erase", None),
    ("process", None),
    ("process", ProcessResult()),
    ("process", processed(kind="unique", sketch=b"E", labels={"a": "b"})),
    ("export_state", b"x"),
    ("export_state", {"a": [1]}),
    ("export_state", None),
    ("ingest", [Event(name="a")]),
    ("ingest", BATCH),
    ("reply", Reply(200)),
    ("enrich", None),
    ("enrich", Enrichment(drop=pa.array([], pa.bool_()))),
    ("insight", Answer([{"a": 1}])),
    ("insight", Answer(pa.table({"a": [1]}))),
    ("alert", [Condition(key="k", title="t")]),
    ("deliver", Delivery(True)),
    ("train", TrainReport(b"")),
]


@pytest.mark.parametrize(("hook", "answer"), GOOD)
def test_a_right_answer_is_given_as_it_is(make: Make, hook: str, answer: Any) -> None:
    assert make(**{hook: lambda: answer}).call(hook, **ARGUMENTS[hook]) is answer


def test_scores_are_one_for_each_point(make: Make) -> None:
    given = np.array([0.0, 0.5, 1.0])
    assert make(score=lambda series: given).call("score", series=SERIES) is given


@pytest.mark.parametrize(
    ("hook", "answer", "expected"),
    [
        ("setup", 1, "returned int; valid is None"),
        ("process", {"a": 1}, "returned dict; valid is ProcessResult or None"),
        ("process", ProcessResult(metrics=metric()), "'metrics' is analytics_core.records.Metric; valid is a list"),
        ("process", ProcessResult(insights="abc"), "'insights' is str; valid is a list"),
        ("process", ProcessResult(metrics=[{"name": "m"}]), "an entry of 'metrics' is dict; valid is Metric"),
        ("process", processed(value=float("nan")), "the value of metric 'm' is nan; valid is a finite number"),
        ("process", processed(value=np.float64("inf")), "the value of metric 'm' is inf; valid is a finite number"),
        ("process", processed(value="1"), "the value of metric 'm' is str; valid is a finite number"),
        ("process", processed(value=True), "the value of metric 'm' is bool; valid is a finite number"),
        ("process", processed(value=None), "the value of metric 'm' is None; valid is a finite number"),
        ("process", processed(name=""), "a metric is named ''; valid is text that is not empty"),
        ("process", processed(name=5), "a metric is named 5"),
        ("process", processed(kind="mean"), "metric 'm' is of kind 'mean'; valid are: histogram, last, max, sum"),
        ("process", processed(kind="unique"), "metric 'm' of kind 'unique' has no sketch; valid is its to_bytes()"),
        ("process", processed(labels={"code": 5}), "metric 'm' has the label 'code': 5; valid is text for both"),
        ("process", processed(labels=[("a", "b")]), "the labels of metric 'm' is list; valid is a dict of text"),
        ("process", processed(window=START), "metric 'm' has the window"),
        ("process", processed(window=Window(START, 0)), "metric 'm' has the window"),
        ("process", processed(window=Window(datetime(2025, 1, 1))), "metric 'm': its window starts at"),  # noqa: DTZ001
        ("process", ProcessResult(insights=[Insight(key="k", title="", description="", data={"a": object()})]),
         "insight 'k' cannot be written as JSON"),
        ("process", ProcessResult(insights=[Insight(key="k", title="", description="", severity="bad")]),  # type: ignore[arg-type]
         "insight 'k' has the severity 'bad'; valid are: critical, high, info, low, medium"),
        ("process", ProcessResult(patterns=[Pattern(key="k", name="", description="", count=1, data={"a": {1j}})]),
         "pattern 'k' cannot be written as JSON"),
        ("export_state", {1, 2}, "returned set; valid is bytes or a JSON value"),
        ("ingest", None, "returned None; valid is a list of Event, or an EventBatch"),
        ("ingest", [{"event": "a"}], "an entry of the list is dict; valid is Event"),
        ("reply", b"ok", "returned bytes; valid is Reply"),
        ("reply", Reply(0), "the reply's status is 0"),
        ("reply", Reply(200, "ok"), "the reply's body is str; valid is bytes"),  # type: ignore[arg-type]
        ("reply", Reply(200, b"", {"a": "b\r\nSet-Cookie: c"}), "the reply has the header 'a'"),
        ("enrich", BATCH, "returned analytics_core.events.EventBatch; valid is Enrichment or None"),
        ("enrich", Enrichment(drop=np.array([True])), "'drop' has 1 values for 0 events; valid is one for each"),
        ("insight", None, "returned None; valid is Answer"),
        ("insight", Answer({"a": [1]}), "the answer's table is dict; valid is an Arrow table or a list of row dicts"),
        ("insight", Answer([("a", 1)]), "a row of the answer's table is tuple; valid is a dict"),
        ("alert", None, "returned None; valid is a list of Condition"),
        ("deliver", True, "returned bool; valid is Delivery"),
        ("train", b"", "returned bytes; valid is TrainReport"),
        ("score", [0.0, 0.0, 0.0], "returned list; valid is a numpy array"),
        ("score", np.zeros(2), "returned the shape (2,); valid is (3,), one score for each point"),
        ("score", np.array([0.0, np.nan, 2.0]), "returned scores outside [0, 1]"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_the_plugin_s_failure(make: Make, hook: str, answer: Any, expected: str) -> None:
    with pytest.raises(HookFailedError) as raised:
        make(**{hook: lambda: answer}).call(hook, **ARGUMENTS[hook])
    assert str(raised.value).startswith(f"Plugin 'shop': hook {hook!r} failed: {expected}")
    assert (raised.value.plugin, raised.value.hook) == ("shop", hook)


@pytest.mark.parametrize("value", [np.float64(2.5), np.float32(2.5), 2, np.int64(2)])
def test_numbers_of_numpy_become_plain_ones(make: Make, value: Any) -> None:
    result = make(process=lambda: processed(value=value)).call("process", batch=BATCH)
    assert [type(m.value) for m in result.metrics] == [float, float]
    assert result.metrics[1].value == float(value)


def test_a_method_is_given_what_it_takes(make: Make) -> None:
    seen: list[Any] = []
    instance = make(
        import_state=lambda version: seen.append(version), erase=lambda ids, tenant: seen.append((ids, tenant))
    )
    instance.call("import_state", state=b"", version=3)
    instance.call("erase", tenant="t", ids=["a"])
    assert seen == [3, (["a"], "t")]


def test_a_hook_that_is_not_implemented_gives_none(make: Make) -> None:
    instance = make(process=lambda: None)
    assert instance.call("teardown") is None
    assert asyncio.run(instance.acall("enrich", 1.0, batch=BATCH)) is None
    with pytest.raises(ValueError, match="'proces' is not specified"):
        instance.call("proces", batch=BATCH)


def raising(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


def raising_async(error: BaseException) -> Callable[[], Any]:
    async def hook() -> Any:
        raise error

    return hook


ERRORS = [
    ValueError("no"),
    SystemExit(3),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
    RecursionError("r"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("kind", [raising, raising_async])
def test_whatever_a_hook_raises_is_its_failure(make: Make, kind: Callable[..., Any], error: BaseException) -> None:
    instance = make(enrich=kind(error))
    with pytest.raises(HookFailedError, match="Plugin 'shop': hook 'enrich' failed: ") as raised:
        instance.call("enrich", batch=BATCH)
    assert isinstance(raised.value.__cause__, Exception | SystemExit | GeneratorExit | asyncio.CancelledError)
    with pytest.raises(HookFailedError, match="Plugin 'shop': hook 'enrich' failed: ") as raised:
        asyncio.run(instance.acall("enrich", 5.0, batch=BATCH))
    assert not isinstance(raised.value, HookTimeoutError)


def test_ctrl_c_is_the_operator_s(make: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(process=raising(KeyboardInterrupt())).call("process", batch=BATCH)


def test_a_keyboard_interrupt_of_another_thread_is_the_plugin_s(make: Make) -> None:
    instance = make(enrich=raising(KeyboardInterrupt()))
    with pytest.raises(HookFailedError, match="KeyboardInterrupt"):
        asyncio.run(instance.acall("enrich", 5.0, batch=BATCH))


def test_async_and_plain_hooks_answer_alike(make: Make) -> None:
    async def insight(question: Question) -> Answer:
        await asyncio.sleep(0)
        return Answer([{"tenant": question.tenant}])

    for hook in (insight, lambda question: Answer([{"tenant": question.tenant}])):
        instance = make(insight=hook)
        expected = [{"tenant": "default"}]
        assert instance.call("insight", question=QUESTION, events=None).table == expected
        assert asyncio.run(instance.acall("insight", 5.0, question=QUESTION, events=None)).table == expected


def test_async_hooks_share_one_loop_that_is_not_the_caller_s(make: Make) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    instance = make(setup=note, enrich=note)
    instance.call("setup", context=None)

    async def main() -> None:
        await instance.acall("enrich", 5.0, batch=BATCH)
        loops.append(asyncio.get_running_loop())

    asyncio.run(main())
    assert loops[0] is loops[1]
    assert loops[2] is not loops[0]


def test_concurrent_calls_run_side_by_side(make: Make) -> None:
    """Neither kind could pass the barrier alone."""
    barrier = threading.Barrier(4, timeout=20)

    async def main(instance: Instance) -> list[Any]:
        return await asyncio.gather(*(instance.acall("alert", 20.0, signals=None) for _ in range(4)))

    assert asyncio.run(main(make(alert=lambda: [] if barrier.wait() >= 0 else None))) == [[]] * 4

    arrived = 0

    async def meet() -> list[Any]:
        nonlocal arrived
        arrived += 1
        while arrived < 4:
            await asyncio.sleep(0)
        return []

    assert asyncio.run(main(make(alert=meet))) == [[]] * 4


def test_a_plain_hook_that_overruns_is_given_up_and_its_place_filled(make: Make) -> None:
    release, left = threading.Event(), threading.Semaphore(0)

    def enrich(batch: EventBatch) -> None:
        if batch.tenant == "slow":
            release.wait(60)
            left.release()

    instance = make(enrich=enrich)
    slow = EventBatch.empty("slow", START)

    async def main() -> None:
        for _ in range(MAX_HUNG):
            with pytest.raises(HookTimeoutError, match=r"hook 'enrich' failed: no answer within 0\.01 s"):
                await instance.acall("enrich", 0.01, batch=slow)
            if instance._threads.hung < MAX_HUNG:
                assert await instance.acall("enrich", 20.0, batch=BATCH) is None
        with pytest.raises(HookFailedError, match=f"{MAX_HUNG} earlier calls hang; the plugin needs a restart"):
            await instance.acall("enrich", 20.0, batch=BATCH)
        release.set()
        for _ in range(MAX_HUNG):
            assert await asyncio.to_thread(left.acquire, timeout=20)
        while instance._threads.hung:
            await asyncio.sleep(0)
        assert await instance.acall("enrich", 20.0, batch=BATCH) is None

    asyncio.run(main())


def test_an_async_hook_that_overruns_is_cancelled(make: Make) -> None:
    ended = threading.Event()

    async def insight() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    instance = make(insight=insight)
    with pytest.raises(HookTimeoutError):
        asyncio.run(instance.acall("insight", 0.01, question=QUESTION, events=None))
    assert ended.wait(20)


def test_an_async_hook_that_never_awaits_loses_its_loop_only(make: Make) -> None:
    release = threading.Event()
    entered: list[threading.Thread] = []

    async def enrich(batch: EventBatch) -> None:
        entered.append(threading.current_thread())
        if batch.tenant == "slow":
            release.wait(60)

    instance = make(enrich=enrich)

    async def main() -> None:
        with pytest.raises(HookTimeoutError):
            await instance.acall("enrich", 0.01, batch=EventBatch.empty("slow", START))
        blocked = instance._loop
        while instance._loop is blocked:  # the grace is a quarter of a second
            await asyncio.sleep(0.01)
        assert await instance.acall("enrich", 20.0, batch=BATCH) is None

    asyncio.run(main())
    assert entered[0] is not entered[1]
    release.set()
    entered[0].join(20)
    assert not entered[0].is_alive()


def test_a_loop_survives_what_a_plugin_s_own_task_raises(make: Make) -> None:
    async def leave() -> None:
        sys.exit(3)

    async def setup() -> None:
        tasks.append(asyncio.create_task(leave()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def alert() -> list[Any]:
        return []

    tasks: list[asyncio.Task[None]] = []
    instance = make(setup=setup, alert=alert)
    instance.call("setup", context=None)
    assert instance.call("alert", signals=None) == []
    assert isinstance(tasks[0].exception(), SystemExit)


def test_the_caller_s_cancellation_is_no_failure_of_the_plugin(make: Make) -> None:
    started, ended = threading.Event(), threading.Event()

    async def insight() -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    instance = make(insight=insight)

    async def main() -> None:
        call = asyncio.create_task(instance.acall("insight", 60.0, question=QUESTION, events=None))
        await asyncio.to_thread(started.wait, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert ended.wait(20)


def test_closing_ends_what_still_waits(make: Make) -> None:
    started = threading.Event()

    async def insight() -> Any:
        started.set()
        await asyncio.Event().wait()

    instance = make(insight=insight)

    async def main() -> None:
        call = asyncio.create_task(instance.acall("insight", 60.0, question=QUESTION, events=None))
        await asyncio.to_thread(started.wait, 20)
        instance.close()
        with pytest.raises(HookFailedError, match="the plugin was stopped meanwhile"):
            await call

    asyncio.run(main())


def test_threads_end_when_an_instance_is_closed(make: Make) -> None:
    workers: list[threading.Thread] = []
    instance = make(enrich=lambda: workers.append(threading.current_thread()))
    asyncio.run(instance.acall("enrich", 20.0, batch=BATCH))
    assert workers[0].daemon
    instance.close()
    workers[0].join(20)
    assert not workers[0].is_alive()
    with pytest.raises(HookFailedError, match="the plugin was stopped meanwhile"):
        asyncio.run(instance.acall("enrich", 20.0, batch=BATCH))


def test_threads_end_when_an_instance_is_forgotten() -> None:
    workers: list[threading.Thread] = []

    class Plugin:
        @hookimpl
        def enrich(self) -> None:
            workers.append(threading.current_thread())

        @hookimpl
        async def alert(self) -> list[Condition]:
            workers.append(threading.current_thread())
            return []

    instance = Instance("shop", Plugin(), frozenset({"enrich", "alert"}))
    asyncio.run(instance.acall("enrich", 20.0, batch=BATCH))
    asyncio.run(instance.acall("alert", 20.0, signals=None))
    del instance
    import gc

    gc.collect()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


def test_a_lane_calls_on_its_own_thread(make: Make) -> None:
    where: list[threading.Thread] = []
    make(process=lambda: where.append(threading.current_thread())).call("process", batch=BATCH)
    assert where == [threading.current_thread()]
