"""Workers that are forked off a process which has imported what a worker needs: a start takes milliseconds.

A worker is the same code, in a process of its own, with the same descriptors and environment; only its interpreter is
not started anew. That it can be is for tests of whole servers, and for those that use `plugin_house.House.host` with
``forked=False``.
"""

from __future__ import annotations

import contextlib
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
from typing import Final, Never

import msgspec

from analytics_core.host.running.children import environment

_NUMBER: Final = struct.Struct("i")
_MOST: Final = 1 << 17
"""Bytes of one request: the environment of a worker."""


class Forked:
    """One worker, with what of `subprocess.Popen` the host uses."""

    def __init__(self, told: int, stdout: int) -> None:
        weakref.finalize(self, os.close, told)
        self._told = told
        self._lock = threading.Lock()
        self.stdout = os.fdopen(stdout, "rb")
        self.pid = _NUMBER.unpack(os.read(told, _NUMBER.size))[0]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        waiting = select.poll()
        waiting.register(self._told, select.POLLIN)
        if self.returncode is None and waiting.poll(None if seconds is None else seconds * 1000):
            with self._lock:
                if self.returncode is None:
                    self.returncode = _NUMBER.unpack(os.read(self._told, _NUMBER.size))[0]
        return self.returncode


class Nursery:
    """The process that they are forked off. It ends with the one that has made this."""

    def __init__(self) -> None:
        self._asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-X", "faulthandler", __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environment())
        theirs.close()

    def fork(self, lane: int, calls: int, life: int) -> Forked:
        told, tells = os.pipe()
        stdout, writes = os.pipe()
        try:
            socket.send_fds(self._asking, [msgspec.json.encode(environment())], [lane, calls, life, writes, tells])
        finally:
            os.close(writes)
            os.close(tells)
        return Forked(told, stdout)


@functools.cache
def _nursery() -> Nursery:
    return Nursery()


def fork(lane: int, calls: int, life: int) -> Forked:
    """As `analytics_core.host.running.process.launch`, off one nursery for all tests of this process."""
    return _nursery().fork(lane, calls, life)


def _main(asked: socket.socket) -> None:
    importlib.import_module("analytics_core.host.running.worker")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the workers
    while True:
        environ, fds, _, _ = socket.recv_fds(asked, _MOST, 5)
        if not environ:
            return
        if not os.fork():
            try:
                asked.close()
                _mind(msgspec.json.decode(environ, type=dict[str, str]), *fds)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)


def _mind(environ: dict[str, str], lane: int, calls: int, life: int, writes: int, tells: int) -> Never:
    """Fork a worker, tell its number, wait for it and tell how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker = os.fork()
    if not worker:
        os.close(tells)
        _become_worker(environ, lane, calls, life, writes)
    for fd in (lane, calls, life, writes):
        os.close(fd)
    os.write(tells, _NUMBER.pack(worker))
    _, status = os.waitpid(worker, 0)
    os.write(tells, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become_worker(environ: dict[str, str], lane: int, calls: int, life: int, writes: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(writes, 1)
    os.dup2(writes, 2)
    os.close(writes)
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:] = environ["PYTHONPATH"].split(os.pathsep)
    importlib.invalidate_caches()
    sys.argv[1:] = [str(lane), str(calls), str(life)]
    importlib.import_module("analytics_core.host.running.worker").main()


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
