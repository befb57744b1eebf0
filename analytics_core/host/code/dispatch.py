"""The calling of hooks. pluggy specifies and registers; the calling is ours.

Plain pluggy lets one failing plugin stop the others, never awaits, and names no culprit. Here each instance is alone in
a `pluggy.PluginManager`, every failure says whose it is, and every answer is checked.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from types import FrameType
from typing import Any, Final

import pluggy

from analytics_core.errors import HookFailedError, HookRefusedError, HookTimeoutError
from analytics_core.hookspecs import HOOKS, PROJECT, Hooks
from analytics_core.host.code.answers import WrongAnswerError, checked_answer
from analytics_core.host.code.threads import MAX_HUNG, LoopThread, Threads

_STOPPED: Final = "the plugin was stopped meanwhile"
_GRACE: Final = 0.25
"""Seconds that a loop has to take a turn after a deadline before it is given up as blocked."""


def unheard(number: int, frame: FrameType | None) -> None:
    """The handler of a signal that is for others. What the process starts does not inherit it, as it would SIG_IGN."""


def is_interrupt(error: BaseException) -> bool:
    """The operator's Ctrl-C, the one exception that is never taken for the plugin's. A process that does not hear the
    signal, as a plugin's own, gets none."""
    heard = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
    return heard and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, unheard)


class Instance:
    """One object of a plugin's class, its ``target``. ``hooks`` are those that it implements; calling another one gives
    None."""

    def __init__(self, plugin: str, target: object, hooks: frozenset[str]) -> None:
        self.plugin = plugin
        self.target = target
        self.hooks = hooks
        self._registry = pluggy.PluginManager(PROJECT)
        self._registry.add_hookspecs(Hooks)
        try:
            self._registry.register(target, plugin)
            self._registry.check_pending()
        except pluggy.PluginValidationError as error:
            raise HookRefusedError(plugin, str(error)) from error
        self._threads = Threads(plugin)
        weakref.finalize(self, self._threads.close)
        self._loop: LoopThread | None = None
        self._starting = threading.Lock()
        self._async = frozenset(name for name in hooks if inspect.iscoroutinefunction(getattr(target, name)))

    def __repr__(self) -> str:
        return f"<Instance of {self.plugin}: {', '.join(sorted(self.hooks))}>"

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call ``hook`` on this thread and wait for its answer; an ``async def`` runs on the instance's own loop.

        The method is given those of ``arguments`` that it takes.

        :raises HookFailedError: for anything that it raised (``SystemExit`` too), or a wrong answer.
        """
        if not self._implements(hook):
            return None
        if hook not in self._async:
            return self._run(hook, arguments)
        try:
            return self._own_loop().submit(self._run_async(hook, arguments)).result()
        except CancelledError as error:
            raise HookFailedError(self.plugin, hook, _STOPPED) from error

    async def acall(self, hook: str, seconds: float, **arguments: Any) -> Any:
        """Call ``hook`` off the running event loop: a ``def`` in a thread, an ``async def`` on the instance's own loop.

        Waiting for a free thread counts. A call that overruns is given up: its thread ends when it returns.

        :raises HookTimeoutError: when there is no answer within ``seconds``.
        :raises HookFailedError: as `call`, and when too many given-up calls still hang.
        """
        if not self._implements(hook):
            return None
        if hook in self._async:
            return await self._await_loop(hook, seconds, arguments)
        if self._threads.hung >= MAX_HUNG:
            raise HookFailedError(self.plugin, hook, f"{MAX_HUNG} earlier calls hang; the plugin needs a restart")
        job = self._threads.submit(lambda: self._run(hook, arguments))
        try:
            return await self._answer(job.future, hook, seconds)
        finally:
            self._threads.abandon(job)

    def close(self) -> None:
        """Let go of threads and loop, without waiting for a call that hangs. ``teardown`` is the caller's to call.

        An instance that is forgotten does the same.
        """
        self._threads.close()
        if self._loop is not None:
            self._loop.stop()

    def _implements(self, hook: str) -> bool:
        if hook not in HOOKS:
            raise ValueError(f"hook {hook!r} is not specified; valid are: {', '.join(sorted(HOOKS))}")
        return hook in self.hooks

    def _invoke(self, hook: str, arguments: Mapping[str, Any]) -> Any:
        answers = getattr(self._registry.hook, hook)(**arguments)
        return answers[0] if answers else None  # pluggy leaves None out

    def _run(self, hook: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return checked_answer(hook, self._invoke(hook, arguments), arguments)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise self._failure(hook, error) from error

    async def _run_async(self, hook: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return checked_answer(hook, await self._invoke(hook, arguments), arguments)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # it is we who end the call
            raise self._failure(hook, error) from error

    def _failure(self, hook: str, error: BaseException) -> HookFailedError:
        return HookFailedError(self.plugin, hook, str(error) if isinstance(error, WrongAnswerError) else error)

    async def _answer(self, future: Future[Any], hook: str, seconds: float) -> Any:
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
        if not done:
            waiting.cancel()
            raise HookTimeoutError(self.plugin, hook, seconds)
        if waiting.cancelled():
            raise HookFailedError(self.plugin, hook, _STOPPED)
        return waiting.result()

    async def _await_loop(self, hook: str, seconds: float, arguments: Mapping[str, Any]) -> Any:
        loop = self._own_loop()
        future = loop.submit(self._run_async(hook, arguments))
        try:
            return await self._answer(future, hook, seconds)
        except HookTimeoutError:
            future.cancel()
            turned = loop.responds()
            asyncio.get_running_loop().call_later(_GRACE, self._give_up, loop, turned)
            raise
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _own_loop(self) -> LoopThread:
        with self._starting:
            if self._loop is None or self._loop.loop.is_closed():
                self._loop = LoopThread(self.plugin)
                weakref.finalize(self, self._loop.stop)
            return self._loop

    def _give_up(self, loop: LoopThread, turned: threading.Event) -> None:
        """A loop without a turn since the deadline is blocked by a call that never awaits; the next gets a new one."""
        with self._starting:
            if self._loop is loop and not turned.is_set():
                self._loop = None
                loop.stop()
