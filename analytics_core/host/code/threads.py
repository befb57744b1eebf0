"""Where a plugin's concurrent hooks run: threads and an event loop of its own, which a hang cannot take from others.

``concurrent.futures`` will not do: its threads cannot be given up, and are waited for at exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

MAX_THREADS: Final = 16
MAX_HUNG: Final = 8

T = TypeVar("T")


class Job:
    """One call on its way. ``future`` is resolved with what the call returns or raises."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()
        self.running = False
        self.abandoned = False

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Threads:
    """Up to `MAX_THREADS` daemon threads, started when needed. A hung one is given up and its place filled anew."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._threads = 0
        self._idle = 0
        self._hung = 0
        self._closed = False

    @property
    def hung(self) -> int:
        """How many threads were given up and are still busy."""
        return self._hung

    def submit(self, call: Callable[[], Any]) -> Job:
        job = Job(call)
        with self._changed:
            if self._closed:
                job.future.cancel()
                return job
            self._waiting.append(job)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif self._threads < MAX_THREADS:
                self._start()
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for ``job`` any more: forget it, or give up the thread that is at it."""
        with self._changed:
            if not job.running:
                job.future.cancel()
            elif not job.abandoned and not job.future.done():
                job.abandoned = True
                self._hung += 1
                self._threads -= 1
                if self._waiting and self._threads < MAX_THREADS:
                    self._start()

    def close(self) -> None:
        """Idle threads end now, busy ones after their call; what still waits is cancelled."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name=f"{self._name}-call", daemon=True).start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            with self._changed:
                if job.abandoned:
                    self._hung -= 1
                    return
            del job

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    self._threads -= 1
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            job = self._waiting.popleft()
            job.running = True
            return job


class Overdue:
    """Counts calls on threads of their own that nobody waits for any more and that still run."""

    def __init__(self) -> None:
        self.count = 0
        self._running: dict[Callable[[], Any], bool] = {}
        self._lock = threading.Lock()

    def watched(self, call: Callable[[], T]) -> Callable[[], T]:
        """``call``, known here from now until it returns. The result is run once."""

        def run() -> T:
            try:
                return call()
            finally:
                with self._lock:
                    self.count -= self._running.pop(run)

        self._running[run] = False
        return run

    def give_up(self, run: Callable[[], Any]) -> None:
        """Nobody waits for ``run`` any more."""
        with self._lock:
            if run in self._running:
                self._running[run] = True
                self.count += 1


class LoopThread:
    """An event loop on a daemon thread: ``async def`` hooks block at most this one."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-loop", daemon=True)
        self._thread.start()

    def submit(self, call: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(call, self.loop)

    def responds(self) -> threading.Event:
        """Set as soon as the loop takes its next turn."""
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        return turned

    def stop(self) -> None:
        """End the loop when it next takes a turn, cancelling what runs on it. Does not wait."""
        self._stopping = True
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self) -> None:
        """Wait for the end that `stop` has asked for."""
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._stopping:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt):  # asyncio lets these out of a task that a plugin made
                    continue
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()


async def on_own_thread(name: str, call: Callable[[], T]) -> T:
    """``call`` on a daemon thread of its own: a call that never returns blocks no pool and no shutdown."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if future.done() else result())

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            problem = error
            settle(lambda: future.set_exception(problem))
        else:
            settle(lambda: future.set_result(value))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
