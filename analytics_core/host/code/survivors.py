"""What of a retired generation is still alive, by name: each is a leak of the plugin, or work that goes on."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any
from weakref import ref

_SHOWN = 3
_OURS = frozenset({__name__, "gc", "weakref"})


def survivors(alias: str, traces: Iterable[ref[Any]]) -> tuple[str, ...]:
    """Threads and tasks that run code of the modules below ``alias``, and which of ``traces`` are still referenced.

    Collects garbage first, so that a cycle is not taken for a reference.
    """
    gc.collect()
    return (*_threads(alias), *_tasks(alias), *_references(traces))


def _threads(alias: str) -> Iterator[str]:
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident) if thread.ident is not None else None
        if thread is not threading.current_thread() and _runs(frame, alias):
            yield f"thread {thread.name!r}"


def _runs(frame: FrameType | None, alias: str) -> bool:
    while frame is not None:
        if within(frame.f_globals.get("__name__"), alias):
            return True
        frame = frame.f_back
    return False


def _tasks(alias: str) -> Iterator[str]:
    for found in [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]:
        coroutine = found.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        if not found.done() and frame is not None and within(frame.f_globals.get("__name__"), alias):
            yield f"task {getattr(coroutine, '__qualname__', found.get_name())!r}"


def _references(traces: Iterable[ref[Any]]) -> Iterator[str]:
    for trace in traces:
        alive = trace()
        if alive is not None:
            holders = sorted({_holder(each) for each in gc.get_referrers(alive)} - {""})
            held = f", held by {', '.join(holders[:_SHOWN])}" if holders else ""
            kind = "module" if isinstance(alive, ModuleType) else "class"
            yield f"{kind} {alive.__name__}{held}"


def _holder(referrer: Any) -> str:
    """Who holds a reference, in a few words; empty for what belongs to the generation itself or to this look."""
    if isinstance(referrer, dict) and isinstance(name := referrer.get("__name__"), str):
        return f"module {name}"
    if isinstance(referrer, FrameType):
        name = referrer.f_globals.get("__name__", "")
        return "" if name in _OURS else f"a call of {referrer.f_code.co_qualname} in {name}"
    if isinstance(referrer, ref):
        return ""
    return f"a {type(referrer).__name__}"


def within(name: Any, alias: str) -> bool:
    """Whether ``name`` is that of the module ``alias`` or of one below it."""
    return isinstance(name, str) and (name == alias or name.startswith(f"{alias}."))
