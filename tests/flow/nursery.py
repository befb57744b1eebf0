"""Servers and workers that are forked off a process which has imported what they need: a start takes milliseconds.

Each is the same code, in a process of its own, with the same arguments, environment and descriptors; only its
interpreter is not started anew. That it can be is for tests that ask `server_house.ServerHouse` or
`plugin_house.House.host` for one that is not ``forked``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from analytics_core.host.running.children import environment

Kind = Literal["server", "worker"]

_ROOT: Final = Path(__file__).parents[2]
_NUMBER: Final = struct.Struct("i")
_MOST: Final = 1 << 17
"""Bytes of one request: a process's environment and arguments."""
_IMPORTED: Final[dict[Kind, tuple[str, ...]]] = {
    "server": ("analytics_core.app", "analytics_core.cli.serve"),
    "worker": ("analytics_core.host.running.worker",),
}


class Asked(msgspec.Struct):
    environ: dict[str, str]
    arguments: list[str]


class Forked:
    """One server or worker, with what of `subprocess.Popen` is used. ``told`` gives its number, and how it ended."""

    def __init__(self, told: int, stdout: int | None = None) -> None:
        weakref.finalize(self, os.close, told)
        self._told = told
        self._lock = threading.Lock()
        self.stdout = None if stdout is None else os.fdopen(stdout, "rb")
        self.pid = _NUMBER.unpack(os.read(told, _NUMBER.size))[0]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _ended(self, seconds: float | None) -> int | None:
        waiting = select.poll()
        waiting.register(self._told, select.POLLIN)
        if self.returncode is None and waiting.poll(None if seconds is None else seconds * 1000):
            with self._lock:
                if self.returncode is None:
                    self.returncode = _NUMBER.unpack(os.read(self._told, _NUMBER.size))[0]
        return self.returncode


class Nursery:
    """The process that they are forked off. It ends with the one that has made this.

    It imports what a process of this ``kind`` would with this ``environ``.
    """

    def __init__(self, kind: Kind, environ: Mapping[str, str]) -> None:
        self._asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", __file__, str(theirs.fileno()), kind]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environ
        )
        theirs.close()

    def fork(
        self, environ: Mapping[str, str], arguments: Sequence[str], output: int, inherited: Sequence[int] = ()
    ) -> int:
        """The descriptor that tells the new process's number, and how it has ended. It writes to ``output``.

        The numbers which the ``inherited`` descriptors have in it follow its arguments.
        """
        told, tells = os.pipe()
        asked = Asked(dict(environ), list(arguments))
        try:
            socket.send_fds(self._asking, [msgspec.json.encode(asked)], [output, tells, *inherited])
        finally:
            os.close(tells)
        return told


@functools.cache
def _worker_nursery() -> Nursery:
    return Nursery("worker", environment())


@functools.cache
def _server_nursery() -> Nursery:
    return Nursery("server", {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"})


def fork_worker(lane: int, calls: int, life: int) -> Forked:
    """As `analytics_core.host.running.process.launch`, off one nursery for all tests of this process."""
    stdout, writes = os.pipe()
    try:
        return Forked(_worker_nursery().fork(environment(), (), writes, (lane, calls, life)), stdout)
    finally:
        os.close(writes)


def fork_server(arguments: Sequence[str], environ: Mapping[str, str], output: int) -> Forked:
    """``python -m analytics_core.cli`` with these arguments and no other environment, in the project's folder."""
    return Forked(_server_nursery().fork(environ, arguments, output))


def _main(asking: socket.socket, kind: Kind) -> None:
    given = sys.path.copy()
    for module in _IMPORTED[kind]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the forked
    while True:
        raw, fds, _, _ = socket.recv_fds(asking, _MOST, 5)
        if not raw:
            return
        if not os.fork():
            asking.close()
            asked, (output, tells, *inherited) = msgspec.json.decode(raw, type=Asked), fds
            _fork_and_mind(tells, [output, *inherited])
            _become(kind, asked, output, [str(fd) for fd in inherited], given)
            return
        for fd in fds:
            os.close(fd)


def _fork_and_mind(tells: int, others: list[int]) -> None:
    """Returns in a new process. This one tells its number, waits for it and tells how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        os.close(tells)
        return
    for fd in others:
        os.close(fd)
    os.write(tells, _NUMBER.pack(child))
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(tells, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(kind: Kind, asked: Asked, output: int, inherited: list[str], given: list[str]) -> None:
    """Run the code of a process of this ``kind``; ``given`` is what it is given to import from besides PYTHONPATH."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(asked.environ)
    above = [path for path in asked.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv[1:] = [*asked.arguments, *inherited]
    importlib.invalidate_caches()
    if kind == "server":
        sys.path[:] = [str(_ROOT), *above, *given]
        importlib.import_module("analytics_core.cli").main(prog_name="analytics")
    else:
        sys.path[:] = above
        faulthandler.enable()
        importlib.import_module("analytics_core.host.running.worker").main()


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])  # type: ignore[arg-type]
