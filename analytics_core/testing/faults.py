"""Hooks that fail on purpose, so that an author sees what the host makes of it."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Fault:
    """One hook that fails from call ``at`` on, ``times`` times; None is for ever. ``calls`` counts those of every
    instance, and ``struck`` those that failed."""

    def __init__(self, at: int, times: int | None) -> None:
        self.calls = 0
        self.struck = 0
        self._at = at
        self._times = times
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Fault: {self.struck} of {self.calls} calls>"

    def due(self) -> bool:
        """Count one call; whether it is to fail."""
        with self._lock:
            self.calls += 1
            strikes = self.calls >= self._at and (self._times is None or self.struck < self._times)
            self.struck += strikes
            return strikes


class Faults:
    """Context managers that change one hook of a class, for every instance that is made inside them.

    ``at`` counts calls from 1. A host looks up hooks when it makes an instance, so begin the fault before the host.
    """

    @contextmanager
    def raises(
        self, plugin_class: type, hook: str, error: BaseException | None = None, *, at: int = 1, times: int | None = 1
    ) -> Iterator[Fault]:
        """The hook raises ``error``, by default a RuntimeError."""
        raised = error or RuntimeError("a fault on purpose")

        def strike() -> Any:
            raise raised

        with _changed(plugin_class, hook, Fault(at, times), strike) as fault:
            yield fault

    @contextmanager
    def hangs(self, plugin_class: type, hook: str, *, at: int = 1, times: int | None = 1) -> Iterator[Fault]:
        """The hook does not come back before the end of the ``with``; then it gives None."""
        released = threading.Event()

        def strike() -> Any:
            released.wait()

        try:
            with _changed(plugin_class, hook, Fault(at, times), strike) as fault:
                yield fault
        finally:
            released.set()

    @contextmanager
    def returns(
        self, plugin_class: type, hook: str, answer: Any, *, at: int = 1, times: int | None = 1
    ) -> Iterator[Fault]:
        """The hook gives ``answer``, of a wrong type for example, and does nothing else."""
        with _changed(plugin_class, hook, Fault(at, times), lambda: answer) as fault:
            yield fault


@contextmanager
def _changed(plugin_class: type, hook: str, fault: Fault, strike: Callable[[], Any]) -> Iterator[Fault]:
    function = inspect.getattr_static(plugin_class, hook, None)
    if not inspect.isfunction(function):
        raise TypeError(f"{plugin_class.__name__} has no method {hook!r} to change")
    own = hook in vars(plugin_class)
    setattr(plugin_class, hook, _wrapped(function, fault, strike))
    try:
        yield fault
    finally:
        if own:
            setattr(plugin_class, hook, function)
        else:
            delattr(plugin_class, hook)


def _wrapped(function: Callable[..., Any], fault: Fault, strike: Callable[[], Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return strike() if fault.due() else await function(*args, **kwargs)

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return strike() if fault.due() else function(*args, **kwargs)

    return called
