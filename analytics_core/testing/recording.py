"""`record`: every call of a hook into a file, so that a fault of the production becomes a test."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

from analytics_core.events import EventBatch
from analytics_core.host.answers import checked_answer
from analytics_core.host.wire import encode
from analytics_core.lanes.checkpoint import pack
from analytics_core.testing.declared import declared
from analytics_core.testing.recorded import (
    MAGIC,
    Answered,
    Begun,
    Called,
    Content,
    Frame,
    Of,
    RecordingError,
    batch_bytes,
    frame,
    read,
)

__all__ = ["RecordingError", "record"]

HOOKS: Final = ("process", "enrich")
"""Those that are given a batch."""

_NONE: Final = object()

T = TypeVar("T")


def record(plugin: T, path: Path | str, hook: str = "process") -> T:
    """Write every call of ``hook`` into the file at ``path``, which may be there already: the batch before the call,
    its result or exception after it, and the state that the instance held before its first call.

    For a class a subclass that records, to be the plugin's class in its place; for an instance the same instance. The
    file holds events as they came: keep it as you keep the log.

    :raises ValueError: for a hook that is given no batch, or that the plugin does not have.
    :raises RecordingError: for a file that is something else, or the recording of another plugin or hook.
    """
    plugin_class = plugin if isinstance(plugin, type) else type(plugin)
    if hook not in HOOKS or not hasattr(plugin_class, hook):
        has = ", ".join(name for name in HOOKS if hasattr(plugin_class, name)) or "none"
        raise ValueError(f"{plugin_class.__name__}: hook {hook!r} cannot be recorded; valid are: {has}")
    wrapper = _Recorder(plugin_class, Path(path), hook).wrapped(getattr(plugin_class, hook))
    if isinstance(plugin, type):
        names = {key: getattr(plugin, key) for key in ("__module__", "__qualname__", "__doc__")}
        return type(plugin)(plugin.__name__, (plugin,), {hook: wrapper, **names})
    setattr(plugin, hook, wrapper.__get__(plugin))
    return plugin


class _Recorder:
    """Appends to one file; safe for use from any thread."""

    def __init__(self, plugin_class: type, path: Path, hook: str) -> None:
        found = declared(plugin_class)
        self._hook = hook
        self._version = found.manifest.reload.state_version if found is not None else 1
        self._lock = Lock()
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        content = _goes_on(path, Of(plugin_class.__name__, hook))
        self._calls = max((each.number for each in content.frames if isinstance(each, Called)), default=0)
        self._instances = max((each.instance for each in content.frames if isinstance(each, Begun)), default=0)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(content.size)
        weakref.finalize(self, self._file.close)
        if content.size == 0:
            self._file.write(MAGIC)
        if content.of is None:
            self._write(Of(plugin_class.__name__, hook))

    def wrapped(self, hook: Callable[..., Any]) -> Any:
        """The same hook, which records: a function of the instance and of the batch, even if the hook takes none."""
        taken = "batch" in inspect.signature(hook).parameters

        async def awaited(instance: Any, batch: EventBatch) -> Any:
            state = instance.export_state() if self._exports(instance) else _NONE
            with self._recorded(instance, await state if inspect.iscoroutine(state) else state, batch) as answered:
                return answered(await hook(*(instance, batch)[: 1 + taken]))

        def called(instance: Any, batch: EventBatch) -> Any:
            state = instance.export_state() if self._exports(instance) else _NONE
            with self._recorded(
                instance, asyncio.run(state) if inspect.iscoroutine(state) else state, batch
            ) as answered:
                return answered(hook(*(instance, batch)[: 1 + taken]))

        wrapper = functools.wraps(hook)(awaited if inspect.iscoroutinefunction(hook) else called)
        del wrapper.__wrapped__  # whoever looks at the signature is to pass the batch
        return wrapper

    def _exports(self, instance: Any) -> bool:
        """Whether the state is to be recorded first: of an instance that is new here."""
        return self._hook == "process" and not self._number_of(instance) and hasattr(instance, "export_state")

    def _number_of(self, instance: Any) -> int:
        number, known = self._known.get(id(instance), (0, None))
        return number if known is not None and known() is instance else 0

    @contextmanager
    def _recorded(self, instance: Any, state: Any, batch: EventBatch) -> Iterator[Callable[[Any], Any]]:
        """One call: ``state`` is that of a new instance; what it gives is told the answer, and gives it back."""
        with self._lock:
            number = self._number_of(instance)
            if not number:
                self._instances = number = self._instances + 1
                self._known[id(instance)] = number, weakref.ref(instance)
                self._write(Begun(number, None if state is _NONE else pack(state, {}), self._version))
            self._calls = call = self._calls + 1
            self._write(Called(call, number, batch_bytes(batch)))
        try:
            yield lambda answer: self._answered(call, batch, answer)
        except BaseException as error:
            self._failed(call, error)
            raise

    def _answered(self, number: int, batch: EventBatch, answer: Any) -> Any:
        try:
            result = encode(checked_answer(self._hook, answer, {"batch": batch}))
        except Exception as error:  # the host refuses it for what it is; here it is a result like any other
            self._failed(number, error)
        else:
            with self._lock:
                self._write(Answered(number, result))
        return answer

    def _failed(self, number: int, error: BaseException) -> None:
        with self._lock:
            self._write(Answered(number, b"", failure(error)))

    def _write(self, content: Frame) -> None:
        self._file.write(frame(content))


def failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _goes_on(path: Path, of: Of) -> Content:
    """What the file holds already. A torn end goes: nobody could read what is written behind it."""
    if not path.exists():
        return Content(None, [], 0, "")
    content = read(path)
    if content.of is not None and content.of != of:
        kept = f"{content.of.plugin}.{content.of.hook}"
        raise RecordingError(path, f"is a recording of {kept}, not of {of.plugin}.{of.hook}; give another file")
    return content
