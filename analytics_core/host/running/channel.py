"""One end of the blocking connection between a lane and the process of its plugin."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Final

import msgspec
import numpy as np

from analytics_core.host.running.wire import HEADER, frame, size_of, unframe

_TIMEVAL: Final = struct.Struct("ll")
_LEAST_SECONDS: Final = 1e-3


class Channel:
    """Sends and receives frames, on one thread at a time.

    The kernel keeps the time, and a frame crosses in few calls: in small pieces the interpreter lock would be waited
    for after each, which takes half a second for a state of 16 MB beside busy threads.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, number: int, word: str, body: Any) -> None:
        """:raises OSError: when the other end is gone, or takes nothing for as long as `patience` allows."""
        self.send_frame(frame(number, word, body))

    def send_frame(self, framed: tuple[bytes, bytes]) -> None:
        """What `frame` gave."""
        try:
            for piece in framed:
                self._connection.sendall(piece)
        except BlockingIOError:
            raise TimeoutError from None

    def patience(self, seconds: float) -> None:
        """How long the next send may block while the other end takes nothing."""
        self._limit(socket.SO_SNDTIMEO, seconds)

    def receive(self, seconds: float | None = None) -> tuple[int, str, msgspec.Raw]:
        """The next frame.

        :raises TimeoutError: when it has not come within ``seconds``.
        :raises EOFError: when the other end is gone.
        :raises BadFrameError: when it sent something else.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        if deadline is None:
            self._limit(socket.SO_RCVTIMEO, None)
        return unframe(self._exactly(size_of(self._exactly(HEADER.size, deadline)), deadline))

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, size: int, deadline: float | None) -> memoryview:
        content = np.empty(size, np.uint8).data  # not touched before it is filled
        received = 0
        while received < size:
            if deadline is not None:
                self._limit(socket.SO_RCVTIMEO, deadline - time.monotonic())
            try:
                part = self._connection.recv_into(content[received:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TimeoutError from None
            except ConnectionResetError:
                part = 0
            if not part:
                raise EOFError("the other end is gone")
            received += part
        return content

    def _limit(self, option: int, seconds: float | None) -> None:
        """How long a call may block, None for ever. To the kernel that is 0."""
        bound = 0.0 if seconds is None else max(seconds, _LEAST_SECONDS)
        self._connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(bound), int(bound % 1 * 1e6)))
