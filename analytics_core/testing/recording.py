"""`record`: every call of a hook into a file, so that a fault of the production becomes a test; `replay`: those calls
again, on another version of the plugin or the same one."""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Struct

from analytics_core.errors import PluginError
from analytics_core.events import EventBatch
from analytics_core.host.code.answers import checked_answer
from analytics_core.host.code.threads import LoopThread
from analytics_core.host.running.wire import decode, encode
from analytics_core.lanes.checkpoint import pack
from analytics_core.records import Enrichment, ProcessResult
from analytics_core.testing.declared import declared
from analytics_core.testing.running import Call, Subject, differing, fresh, outputs, shown
from analytics_core.testing.tape import Answered, Begun, Called, Content, Of, RecordingError, Tape, read, tape_at

__all__ = ["Failed", "RecordingError", "Replayed", "differences", "record", "replay"]

_RESULTS: Final[dict[str, Any]] = {"process": ProcessResult | None, "enrich": Enrichment | None}
"""The hooks that are given a batch, and what each gives."""
_STATELESS: Final = object()

T = TypeVar("T")


def record(plugin: T, path: Path | str, hook: str = "process") -> T:
    """Write every call of ``hook`` into the file at ``path``, which may be there already: the batch before the call,
    its result or exception after it, and the state that the instance held before its first call.

    For a class a subclass that records, to be the plugin's class in its place; for an instance the same instance. What
    is recorded already may be recorded into a further file. The file holds events as they came: keep it as you keep
    the log.

    :raises ValueError: for a hook that is given no batch, or that the plugin does not have.
    :raises RecordingError: for a file that is something else, the recording of another plugin or hook, or one that
        another process is writing.
    """
    plugin_class = plugin if isinstance(plugin, type) else type(plugin)
    if hook not in _RESULTS or not hasattr(plugin_class, hook):
        has = ", ".join(name for name in _RESULTS if hasattr(plugin_class, name)) or "none"
        raise ValueError(f"{plugin_class.__name__}: hook {hook!r} cannot be recorded; valid are: {has}")
    tape = tape_at(Path(path), Of(plugin_class.__name__, hook))
    if tape in getattr(getattr(plugin, hook), "recorded_on", ()):
        return plugin
    found = declared(plugin_class)
    recorder = _Recorder(tape, hook, found.manifest.reload.state_version if found is not None else 1)
    wrapper = recorder.wrapped(getattr(plugin, hook), inspect.getattr_static(plugin, hook))
    if isinstance(plugin, type):
        names = {key: getattr(plugin, key) for key in ("__module__", "__qualname__", "__doc__")}
        return type(plugin)(plugin.__name__, (plugin,), {hook: wrapper, **names})
    setattr(plugin, hook, wrapper.__get__(plugin))
    return plugin


class _Recorder:
    """One hook of a class or an instance, onto a tape."""

    def __init__(self, tape: Tape, hook: str, version: int) -> None:
        self._tape = tape
        self._hook = hook
        self._version = version
        self._lock = Lock()
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def wrapped(self, hook: Callable[..., Any], static: Any) -> Any:
        """The same hook, which records: a function of the instance and of the batch, even if the hook takes none.

        ``static`` is the hook as the class or the instance holds it, bound to nothing or to what it is to be bound to.
        """
        taken = "batch" in inspect.signature(hook).parameters

        def given(instance: Any, batch: EventBatch) -> Any:
            return static.__get__(instance, type(instance))(*(batch,)[:taken])

        async def awaited(instance: Any, batch: EventBatch) -> Any:
            state = self._state(instance)
            with self._recorded(instance, await state if inspect.iscoroutine(state) else state, batch) as answered:
                return answered(await given(instance, batch))

        def called(instance: Any, batch: EventBatch) -> Any:
            state = self._state(instance)
            with self._recorded(instance, _waited(state) if inspect.iscoroutine(state) else state, batch) as answered:
                return answered(given(instance, batch))

        wrapper: Any = functools.wraps(hook)(awaited if inspect.iscoroutinefunction(hook) else called)
        wrapper.recorded_on = frozenset({self._tape, *getattr(hook, "recorded_on", ())})
        del wrapper.__wrapped__  # whoever looks at the signature is to pass the batch
        return wrapper

    def _state(self, instance: Any) -> Any:
        """What ``export_state`` gives, or is to give when awaited, of an instance that is new here."""
        exports = self._hook == "process" and not self._number_of(instance) and hasattr(instance, "export_state")
        return instance.export_state() if exports else _STATELESS

    def _number_of(self, instance: Any) -> int:
        number, known = self._known.get(id(instance), (0, None))
        return number if known is not None and known() is instance else 0

    @contextmanager
    def _recorded(self, instance: Any, state: Any, batch: EventBatch) -> Iterator[Callable[[Any], Any]]:
        """One call: ``state`` is that of a new instance; what it gives is told the answer, and gives it back."""
        with self._lock:
            number = self._number_of(instance)
            if not number:
                number = self._tape.begin(None if state is _STATELESS else pack(state, {}), self._version)
                self._known[id(instance)] = number, weakref.ref(instance)
        call = self._tape.call(number, batch)
        try:
            yield lambda answer: self._answered(call, batch, answer)
        except BaseException as error:
            self._tape.answer(call, b"", _problem(error))
            raise

    def _answered(self, number: int, batch: EventBatch, answer: Any) -> Any:
        try:
            result = encode(checked_answer(self._hook, answer, {"batch": batch}))
        except Exception as error:  # the host refuses it for what it is; here it is a result like any other
            self._tape.answer(number, b"", _problem(error))
        else:
            self._tape.answer(number, result)
        return answer


def _waited(state: Any) -> Any:
    """What a coroutine gives, awaited on a loop beside: this thread may have one of its own."""
    loop = LoopThread("recording")
    try:
        return loop.submit(state).result()
    finally:
        loop.stop()


def _problem(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# --- and again -------------------------------------------------------------------------------------------------------


class Failed(Struct, frozen=True):
    """A call that gave no result: what it raised, what was wrong with its answer, or that it never came back."""

    problem: str


_NEVER: Final = Failed("it never came back: the recording ends in this call")


class Replayed(NamedTuple):
    """One call: what it gave when it was recorded, and what it gives now."""

    number: int
    recorded: ProcessResult | Enrichment | Failed | None
    now: ProcessResult | Enrichment | Failed | None
    batch: EventBatch


def replay(path: Path | str, plugin_class: type, settings: Mapping[str, Any] | None = None) -> Iterator[Replayed]:
    """Make the recorded calls again, in order: each recorded instance is one here, which begins with the state that it
    had then. A torn end is left out, with a warning.

    :raises RecordingError: for a file that is no recording, of another version, or damaged before its end.
    """
    content = _whole(Path(path))
    assert content.of is not None
    hook = content.of.hook
    answers = {each.number: each for each in content.frames if isinstance(each, Answered)}
    with ExitStack() as running:
        subjects: dict[int, Subject] = {}
        for each in content.frames:
            if isinstance(each, Begun):
                subjects[each.instance] = running.enter_context(fresh(plugin_class, settings))
                if each.state is not None:
                    subjects[each.instance].restore(each.state, each.version)
            elif isinstance(each, Called):
                batch = decode(each.batch, EventBatch)
                now = _made_again(subjects[each.instance], hook, batch)
                yield Replayed(each.number, _recorded(answers.get(each.number), hook), now, batch)


def differences(path: Path | str, plugin_class: type, settings: Mapping[str, Any] | None = None) -> list[str]:
    """Every difference between what `replay` gives and what was recorded, each with the number of its call."""
    return [
        f"call {each.number} of {len(each.batch)} events: {difference}"
        for each in replay(path, plugin_class, settings)
        for difference in _differing(each)
    ]


def _whole(path: Path) -> Content:
    content = read(path)
    if content.note:
        warnings.warn(content.note, stacklevel=4)
    if content.of is None:
        raise RecordingError(path, "holds no call")
    return content


def _made_again(subject: Subject, hook: str, batch: EventBatch) -> Any:
    try:
        return decode(encode(subject.call(hook, batch=batch)), _RESULTS[hook])
    except PluginError as error:
        return Failed(_problem(error.__cause__ or error))


def _recorded(answer: Answered | None, hook: str) -> Any:
    if answer is None:
        return _NEVER
    return Failed(answer.failure) if answer.failure else decode(answer.result, _RESULTS[hook])


def _differing(each: Replayed) -> Iterator[str]:
    was, now = each.recorded, each.now
    if isinstance(was, ProcessResult | None) and isinstance(now, ProcessResult | None):
        then, again = (outputs([Call(each.batch.tenant, found or ProcessResult())]) for found in (was, now))
        yield from differing(then, again, "the recording")
    elif encode(was) != encode(now):
        yield f"{_said(now)} where the recording has {_said(was)}"


def _said(value: Any) -> str:
    return f"failed ({value.problem})" if isinstance(value, Failed) else shown(value)
