"""A plugin run over batches without any host: each instance is called as the host does, and torn down at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from analytics_core.errors import HookFailedError
from analytics_core.events import EventBatch
from analytics_core.host.code.dispatch import Instance
from analytics_core.host.code.generation import Generation
from analytics_core.lanes.checkpoint import pack, unpack, value_of
from analytics_core.lanes.outputs import Found, Key, Pending
from analytics_core.records import Insight, Metric, Pattern, PluginContext, ProcessResult
from analytics_core.testing.declared import as_it_is, context_of, manifest_of, marked

_SHOWN: Final = 300
"""Characters of one record in a message: a sketch alone may have thousands."""
_json = msgspec.json.Encoder(order="deterministic")


def run(plugin_class: type, batches: Iterable[EventBatch], settings: Mapping[str, Any] | None = None) -> ProcessResult:
    """Fold ``batches`` with a fresh instance and merge what it gave: of equal keys the latest, as the store keeps it.

    ``settings`` are checked against the ``plugin.yaml`` of the plugin's package and filled up with its defaults.

    :raises Exception: whatever a hook raises, and `WrongAnswerError` for what the host would not take.
    :raises HookRefusedError: when the hooks do not fit the specification or ``plugin.yaml``.
    """
    with _as_raised(), fresh(plugin_class, settings) as subject:
        for each in batches:
            subject.process(each)
    found = outputs(subject.calls)
    records = [found[key] for key in sorted(found)]
    return ProcessResult(
        [record for record in records if isinstance(record, Metric)],
        [record for record in records if isinstance(record, Pattern)],
        [record for record in records if isinstance(record, Insight)],
    )


def started(plugin_class: type, settings: Mapping[str, Any] | None = None) -> Any:
    """A fresh object of the class after ``setup``, to call hooks of directly. It is the caller's to tear down.

    :raises Exception: whatever ``setup`` raises.
    """
    context = context_of(plugin_class, settings or {})
    instance = as_it_is(plugin_class).instance()
    with _as_raised():
        try:
            instance.call("setup", context=context)
        except HookFailedError:
            with suppress(HookFailedError):
                instance.call("teardown")
            raise
        finally:
            instance.close()
    return instance.target


@contextmanager
def _as_raised() -> Iterator[None]:
    """The plugin's own exception in place of the host's word for it. What would end the run of the tests stays that."""
    try:
        yield
    except HookFailedError as error:
        if not isinstance(error.__cause__, Exception):
            raise
        raised = error.__cause__
    else:
        return
    raise raised


# --- instances -------------------------------------------------------------------------------------------------------


@contextmanager
def kept(instance: Instance) -> Iterator[Instance]:
    """Tears ``instance`` down at the end. What went wrong before matters more than how that goes."""
    try:
        yield instance
    except BaseException:
        with suppress(HookFailedError):
            instance.call("teardown")
        raise
    else:
        instance.call("teardown")
    finally:
        instance.close()


@contextmanager
def running(generation: Generation, context: PluginContext) -> Iterator[Instance]:
    """An instance from ``setup`` to ``teardown``, which comes even when the former fails."""
    with kept(generation.instance()) as instance:
        instance.call("setup", context=context)
        yield instance


class Call(NamedTuple):
    """What one ``process`` gave."""

    tenant: str
    result: ProcessResult


class Folded(NamedTuple):
    """A fold at its end: what each batch gave, and the state as another generation is given it, if there is one."""

    calls: list[Call]
    state: Any


class Subject:
    """One instance and the ``calls`` so far; `renew` hands its state to another instance. Lives inside its ``with``."""

    calls: list[Call]
    instance: Instance

    def __init__(self, start: AbstractContextManager[Instance], version: int) -> None:
        """``version`` is that of the states that the instance exports."""
        self.calls = []
        self._start = start
        self._version = version
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.instance = self._running.enter_context(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._running.__exit__(kind, error, trace)

    @property
    def stateful(self) -> bool:
        return "export_state" in self.instance.hooks

    def renew(self, generation: Generation, context: PluginContext) -> None:
        """Hand over to an instance of ``generation`` and tear the old one down, as the host does when it reloads."""
        with self._running.pop_all():
            envelope = self.export() if self.stateful else None
            version, self._version = self._version, generation.manifest.reload.state_version
            self.instance = self._running.enter_context(running(generation, context))
            if envelope is not None:
                self.restore(envelope, version)

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
        self.calls.append(Call(each.tenant, found))
        return found

    def folded(self) -> Folded:
        return Folded(self.calls, self.state())

    def call(self, hook: str, **arguments: Any) -> Any:
        """:raises HookFailedError: for anything that it raises, and for an answer that the host would refuse."""
        return self.instance.call(hook, **arguments)


def fresh(plugin_class: type, settings: Mapping[str, Any] | None = None) -> Subject:
    """An instance of the class as it is."""
    generation = as_it_is(plugin_class)
    context = context_of(plugin_class, settings or {})
    return Subject(running(generation, context), generation.manifest.reload.state_version)


def adopted(plugin: Any) -> Subject:
    """An object that was set up elsewhere, with the hooks that it marks."""
    plugin_class = type(plugin)
    manifest = manifest_of(plugin_class)
    instance = Instance(manifest.name, plugin, frozenset(marked(plugin_class)))
    return Subject(kept(instance), manifest.reload.state_version)


def carried(envelope: bytes) -> Any:
    """The state that `Subject.export` gave, as ``import_state`` is given it: tuples have become lists."""
    return value_of(unpack(envelope))


def outputs(calls: Iterable[Call]) -> Mapping[Key, Found]:
    """What a store holds after ``calls``: of equal keys the latest."""
    pending = Pending("")
    for call in calls:
        pending.add(call.tenant, call.result)
    return pending.found


# --- what differs ----------------------------------------------------------------------------------------------------


def same(expected: Folded, got: Folded, how: str, other: str) -> None:
    """Compare outputs and states. ``other`` says in a word how ``expected`` was run.

    :raises AssertionError: with ``how`` and the first difference.
    """
    same_outputs(expected.calls, got.calls, how, other)
    same_state(expected.state, got.state, how, other)


def same_outputs(expected: Iterable[Call], got: Iterable[Call], how: str, other: str) -> None:
    """Compare what a store would hold at the end, however many calls that took.

    :raises AssertionError: with ``how`` and the first record that differs.
    """
    for difference in differing(outputs(expected), outputs(got), other):
        raise AssertionError(f"{how}: {difference}")


def same_calls(expected: Iterable[Call], got: Iterable[Call], how: str, other: str) -> None:
    """Compare what equal batches gave, call by call.

    :raises AssertionError: with ``how``, the number of the batch and the first record that differs.
    """
    for number, (ours, theirs) in enumerate(zip(expected, got, strict=True), 1):
        same_outputs([ours], [theirs], f"{how}, batch {number}", other)


def same_state(expected: Any, got: Any, how: str, other: str) -> None:
    """:raises AssertionError: with ``how`` and the first place that differs."""
    if expected != got:
        raise AssertionError(f"{how}: the exported state differs from that of {other}{_place(expected, got)}")


def differing(expected: Mapping[Key, Found], got: Mapping[Key, Found], other: str) -> Iterator[str]:
    """Each record that differs, in order of identity."""
    for key in sorted(expected.keys() | got.keys()):
        ours, theirs = expected.get(key), got.get(key)
        if theirs is None:
            yield f"lacks {shown(ours)}, which {other} gives"
        elif ours is None:
            yield f"{shown(theirs)} where {other} gives nothing"
        elif _json.encode(ours) != _json.encode(theirs):
            yield f"{shown(theirs)} where {other} gives {shown(ours)}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _place(expected: Any, got: Any, path: str = "") -> str:
    """Where two states differ first: the way through objects and lists, or the byte."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            if key not in expected or key not in got:
                return f": {path}[{key!r}] is only in {'this' if key in got else 'that'} one"
            if expected[key] != got[key]:
                return _place(expected[key], got[key], f"{path}[{key!r}]")
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        index = next(i for i, (ours, theirs) in enumerate(zip(expected, got, strict=True)) if ours != theirs)
        return _place(expected[index], got[index], f"{path}[{index}]")
    if isinstance(expected, bytes) and isinstance(got, bytes):
        pairs = enumerate(zip(expected, got, strict=False))
        at = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(expected), len(got)))
        return f" from byte {at} on ({len(got)} and {len(expected)} bytes)"
    return f": {path or 'it'} is {shown(got)} and there {shown(expected)}"
