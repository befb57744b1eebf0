"""The host's side of an ``isolation: process`` plugin: start its worker, talk to it, end it, say how it ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from analytics_core.errors import HookTimeoutError, TrimmedError, WorkerDiedError
from analytics_core.host.running.channel import Channel
from analytics_core.host.running.children import ending, environment
from analytics_core.host.running.connection import Connection
from analytics_core.host.running.wire import BadFrameError, Failure, Trusted, decode
from analytics_core.lanes.fold import Backlog, Step, read_backlog
from analytics_core.state import Checkpoint

_LINE: Final = 16_384

_log = structlog.get_logger(__name__)


def launch(lane: int, calls: int, life: int) -> subprocess.Popen[bytes]:
    """A worker in an interpreter of its own that inherits these three descriptors; it writes to ``stdout``."""
    return subprocess.Popen(  # noqa: S603 - this interpreter and the host's own module
        [sys.executable, "-P", "-X", "faulthandler", "-m", __package__, str(lane), str(calls), str(life)],
        pass_fds=(lane, calls, life),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )


class WorkerProcess:
    """One running worker. The lane's requests come from one thread at a time, concurrent calls from the event loop."""

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        lane, lane_theirs = socket.socketpair()
        calls, calls_theirs = socket.socketpair()
        life_theirs, self._life = os.pipe()
        self._channel = Channel(lane)
        self._calls = Connection(plugin, calls, self)
        self._number = 0
        self._cpu_before: float | None = None
        self._doing = ""
        self._why = ""
        try:
            self._process = launch(lane_theirs.fileno(), calls_theirs.fileno(), life_theirs)
        finally:
            lane_theirs.close()
            calls_theirs.close()
            os.close(life_theirs)
        self._reader = threading.Thread(target=self._read_output, name=f"output:{plugin}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def request(
        self, op: str, body: Any, kind: Any, seconds: float, beat: Callable[[str], None] = lambda _: None
    ) -> Any:
        """One request of the lane. ``seconds`` bounds the time between two signs of life: each hook call is one.

        :raises HookTimeoutError: after the worker was killed for its silence.
        :raises WorkerDiedError: when it has ended.
        :raises AnalyticsError: what the worker itself has raised.
        """
        self._number += 1
        doing = op
        self._cpu_before = self._cpu_seconds()
        try:
            self._channel.patience(seconds)
            self._channel.send(self._number, op, body)
            while True:
                _, word, raw = self._channel.receive(seconds)
                if word != "beat":
                    break
                self._doing = decode(raw, str)
                doing = self._doing or doing
                beat(doing)
        except TimeoutError:
            self.kill(f"{doing!r} gave no answer within {seconds:g} s")
            raise HookTimeoutError(self.plugin, doing, seconds) from None
        except BadFrameError as error:
            self.kill(f"it sent {error}")
            raise WorkerDiedError(self.plugin, self.how()) from None
        except (EOFError, OSError):
            raise WorkerDiedError(self.plugin, self.how()) from None
        finally:
            self._cpu_before = None
        self._doing = ""
        if word == "error":
            raise decode(raw, Failure).error(self.plugin)
        return decode(raw, kind)

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        """A concurrent hook (or ``fold_once``). Raises as `request` does; a timeout alone does not kill the worker,
        but so many in a row do."""
        return await self._calls.call(hook, seconds, arguments)

    def kill(self, why: str) -> None:
        """End the process at once; ``why`` is what `how` will say."""
        self._why = self._why or why
        self._process.kill()

    def close(self, seconds: float = 2.0) -> None:
        """Let the worker end by itself, then by force."""
        self._channel.close()
        self._calls.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._life)
        self._reader.join(seconds)

    def how(self) -> str:
        """How it ended: the host's reason, a signal or an exit code, and during which hooks if that is known."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill("it closed its connection and went on running")
            code = self._process.wait()
        hooks = sorted({self._doing, *self._calls.out()} - {""})
        during = f" (during {' and '.join(map(repr, hooks))})" if hooks else ""
        return f"{self._why or ending(code)}{during}"

    def anonymous_bytes(self) -> int | None:
        """Memory of its own, without mapped files such as the log; None where the system does not tell."""
        return _status(self.pid, "RssAnon:")

    def cpu_in_request(self) -> float:
        """Processor seconds of the process since the lane's present request began; 0 between requests."""
        before, now = self._cpu_before, self._cpu_seconds()
        return now - before if before is not None and now is not None else 0.0

    def _cpu_seconds(self) -> float | None:
        """Since its start; None where the system does not tell."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _read_output(self) -> None:
        """What the plugin prints or logs goes to the host's log under its name."""
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            while line := stream.readline(_LINE):
                self._log_line(line.decode("utf-8", "replace").rstrip())

    def _log_line(self, line: str) -> None:
        if not line:
            return
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
            event, level = str(record.pop("event")), str(record.pop("level", "info"))
        except (msgspec.MsgspecError, KeyError):
            _log.info("plugin_output", plugin=self.plugin, line=line)
            return
        record.pop("plugin", None)
        speak = {"debug": _log.debug, "warning": _log.warning, "error": _log.error, "critical": _log.critical}
        speak.get(level, _log.info)(
            "plugin_log", plugin=self.plugin, message=event, **{"data": record} if record else {}
        )


class ProcessFold:
    """The fold whose plugin lives in a worker: a window's positions go in, what was found comes out."""

    def __init__(
        self,
        worker: WorkerProcess,
        seconds: float,
        *,
        backlog: Backlog | None = None,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._worker = worker
        self._seconds = seconds
        self._backlog = backlog
        self._beat = beat
        self._version: int = self._request("open", None, int)

    @property
    def state_version(self) -> int:
        return self._version

    def restore(self, checkpoint: Checkpoint) -> None:
        self._request("restore", checkpoint, None)

    def advance(self, position: int, max_rows: int) -> Step:
        try:
            step: Step = self._request("advance", (position, max_rows), Step)
        except TrimmedError:
            if self._backlog is None:
                raise
            window = read_backlog(self._worker.plugin, self._backlog, position, max_rows)
            step = self._request("fold", window, Step)
        return step

    def export(self) -> bytes:
        state: bytes = self._request("export", None, bytes)
        return state

    def close(self) -> None:
        if self._worker.alive:
            self._request("close", None, None)

    def _request(self, op: str, body: Any, kind: Any) -> Any:
        try:
            return self._worker.request(op, body, kind, self._seconds, self._beat)
        finally:
            self._beat("")


def spec_of(reader: Any) -> Trusted:
    """What opens the same reader in a worker: anything picklable with ``open()``, from the reader's ``to_spec()``."""
    return Trusted(reader.to_spec())


def _status(pid: int, field: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)
