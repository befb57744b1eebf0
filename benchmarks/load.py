"""A load generator that costs little: bodies are byte matrices whose ids are rewritten in place between requests.

Every event carries a messageId, so the server does its whole work, deduplication included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import numpy as np
from msgspec import Struct

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_NAMES = ("page_view", "search", "product_view", "add_to_cart", "checkout", "purchase")


class Result(Struct):
    """One run: acknowledged events, wall seconds, and each request's latency in seconds."""

    events: int
    seconds: float
    latencies: list[float]
    refused: int

    @property
    def rate(self) -> float:
        return self.events / self.seconds

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.latencies, q)) if self.latencies else float("nan")


class Bodies:
    """JSON arrays of ``batch`` events, all of one length, with fresh ids each time."""

    def __init__(self, batch: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = [_event(rng, i) for i in range(batch)]
        width = max(map(len, rows))
        rows = [row[:-1] + b" " * (width - len(row)) + b"}" for row in rows]
        self._matrix = np.frombuffer(b"".join(row + b"," for row in rows), np.uint8).reshape(batch, width + 1).copy()
        self._matrix[-1, -1] = ord("]")
        self._at = rows[0].index(b"0" * 32)
        self._batch = batch
        self._next = seed << 40

    def next(self) -> bytes:
        numbers = np.arange(self._next, self._next + self._batch, dtype=np.uint64)
        self._next += self._batch
        for digit in range(16):
            shifted = (numbers >> np.uint64(4 * (15 - digit))) & np.uint64(15)
            self._matrix[:, self._at + 16 + digit] = _DIGITS[shifted.astype(np.int64)]
        return b"[" + self._matrix.tobytes()


def _event(rng: np.random.Generator, index: int) -> bytes:
    name = _NAMES[int(rng.integers(len(_NAMES)))]
    user = int(rng.integers(100_000))
    properties = {"path": f"/product/{rng.integers(1000)}", "price": round(float(rng.random()) * 100, 2)}
    if name == "checkout":
        properties["duration"] = round(float(rng.lognormal(5, 0.5)), 1)
    event = {"messageId": "0" * 32, "event": name, "userId": f"u{user:06d}", "sessionId": f"s{user:06d}-{index % 7}"}
    return msgspec.json.encode({**event, "properties": properties})


class _Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection that reads status and content-length and nothing else."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        start = lowered.index(b"content-length:") + 15
        length = int(lowered[start : start + 12].split(b"\r", 1)[0])
        if len(rest) < length or self._waiting is None:
            return
        self._buffer = rest[length:]
        waiting, self._waiting = self._waiting, None
        waiting.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the server closed the connection"))

    async def post(self, head: bytes, body: bytes) -> int:
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(head + body)  # type: ignore[attr-defined]
        return await self._waiting


async def run(
    port: int, *, batch: int, connections: int, seconds: float, rate: float | None = None, seed: int = 1
) -> Result:
    """Post for ``seconds``: as fast as the replies come, or at ``rate`` events/s over all connections."""
    loop = asyncio.get_running_loop()
    result = Result(0, 0.0, [], 0)
    began = time.perf_counter()
    deadline = began + seconds
    pace = _pacer(rate, batch, began)

    async def one(number: int) -> None:
        bodies = Bodies(batch, seed * 1000 + number)
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        size = len(bodies.next())
        head = (
            f"POST /api/v1/events HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {size}\r\n\r\n"
        ).encode()
        while time.perf_counter() < deadline:
            await pace()
            body = bodies.next()
            sent = time.perf_counter()
            status = await connection.post(head, body)
            if status == 202:
                result.latencies.append(time.perf_counter() - sent)
                result.events += batch
            else:
                result.refused += 1

    await asyncio.gather(*(one(number) for number in range(connections)))
    result.seconds = time.perf_counter() - began
    return result


def _pacer(rate: float | None, batch: int, began: float) -> Callable[[], asyncio.Future[None]]:
    slot = 0

    async def pace() -> None:
        nonlocal slot
        if rate is None:
            return
        due = began + slot * batch / rate
        slot += 1
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)

    return pace  # type: ignore[return-value]
