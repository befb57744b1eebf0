"""The fan-out: results from the bus to whoever is connected and asked for them. It knows no transport.

A transport gives each connection a `Sink` and an ``encode`` function. A message is encoded once for all receivers of
one transport, and no message crosses from one tenant to another: every tenant has a `_Room` of its own, and only the
host's own messages (tenant ``""``, topic ``plugin``) go to all rooms.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, Protocol, get_args

import msgspec
import structlog
from msgspec import Struct

from analytics_core.bus import Bus
from analytics_core.errors import OverloadedError, ParameterError
from analytics_core.records import Message

log = structlog.get_logger(__name__)

Stream = Literal["metric", "insight", "alert", "plugin", "analytics"]
STREAMS: Final[tuple[str, ...]] = get_args(Stream)

_STREAMS_OF: Final[dict[str, tuple[Stream, ...]]] = {
    "metric": ("metric", "analytics"),
    "insight": ("insight", "analytics"),
    "pattern": ("analytics",),
    "alert": ("alert",),
    "plugin": ("plugin",),
}
_EVENTS: Final[dict[Stream, str]] = {"metric": "metric", "insight": "insight:new", "plugin": "plugin:state"}
_MOST_WISHES: Final = 256  # per connection: each message is compared with all of them
_QUIET_ROOMS: Final = 256  # tenants without a connection whose recent messages are still kept for a resume


class Subscription(Struct, frozen=True):
    """One wish of a connection: a stream, narrowed to metric names, labels that must be equal, and severities.

    An empty filter lets everything pass.
    """

    stream: Stream
    metrics: frozenset[str] = frozenset()
    labels: dict[str, str] = {}
    severities: frozenset[str] = frozenset()

    @property
    def open(self) -> bool:
        return not (self.metrics or self.labels or self.severities)

    def takes(self, facts: Facts) -> bool:
        return (
            (not self.metrics or facts.metric in self.metrics)
            and (not self.severities or facts.severity in self.severities)
            and all(facts.labels.get(name) == value for name, value in self.labels.items())
        )


class Facts(Struct, frozen=True):
    """The members of a message's body that filters and event names depend on."""

    metric: str = ""
    severity: str = ""
    labels: dict[str, Any] = {}


class Published:
    """A message as one tenant gets it; its body is looked into once, and only when somebody filters."""

    __slots__ = ("_body", "_facts", "id", "message", "number")

    def __init__(self, id_: str, number: int, message: Message) -> None:
        self.id = id_
        self.number = number
        self.message = message
        self._facts: Facts | None = None
        self._body: bytes | None = None

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            try:
                self._facts = msgspec.json.decode(self.message.body, type=Facts)
            except msgspec.MsgspecError as problem:
                log.warning("message_body_unreadable", message=self.message.id, problem=str(problem))
                self._facts = Facts()
        return self._facts

    def event(self, stream: Stream, *, operator: bool) -> tuple[str, str, bytes]:
        """The event's name, id and JSON text as clients of ``stream`` see them: the arguments of an `Encode`."""
        body = self.message.body if operator or self.message.topic != "plugin" else self._without_reason
        if stream == "analytics":
            return "analytics:update", self.id, b'{"type":"%s","data":%s}' % (self.message.topic.encode(), body)
        if stream == "alert":
            return f"alert:{self.facts.severity or 'info'}", self.id, body
        return _EVENTS[stream], self.id, body

    @property
    def _without_reason(self) -> bytes:
        """A plugin's state alone: the reason may quote what a plugin said of another tenant's events."""
        if self._body is None:
            try:
                members = msgspec.json.decode(self.message.body, type=dict[str, msgspec.Raw])
            except msgspec.MsgspecError as problem:
                log.warning("message_body_unreadable", message=self.message.id, problem=str(problem))
                members = {}
            members.pop("reason", None)
            self._body = msgspec.json.encode(members)
        return self._body


Encode = Callable[[str, str, bytes], Any]
"""``(event name, message id, JSON text)`` to what the transport's sinks take."""


class Sink(Protocol):
    """One connection's way out. Neither method blocks; both are called on the event loop."""

    def send(self, encoded: Any) -> int:
        """Queue it; how many messages are waiting now."""
        ...

    def drop(self, reason: str) -> None:
        """Forget what is waiting, tell the client why if it still listens, and end the connection."""
        ...


class _Room:
    """One tenant's connections and its recent messages, numbered from 1 under an ``epoch`` of the room's own."""

    def __init__(self, ring: int) -> None:
        self.epoch = secrets.token_hex(4)
        self.number = 0
        self.connections: dict[Connection, None] = {}
        self.ring: deque[Published] = deque(maxlen=ring)

    def keep(self, message: Message) -> Published:
        self.number += 1
        published = Published(f"{self.epoch}-{self.number}", self.number, message)
        self.ring.append(published)
        return published


class Connection:
    """One client. It receives nothing before it has entered a tenant and subscribed."""

    def __init__(self, live: Live, sink: Sink, encode: Encode) -> None:
        self._live = live
        self._expiry: asyncio.TimerHandle | None = None
        self.sink = sink
        self.encode = encode
        self.tenant: str | None = None
        self.operator = False
        self.wishes: dict[Stream, list[Subscription]] = {}

    def enter(self, tenant: str, until: float | None = None, *, operator: bool = False) -> None:
        """Belong to ``tenant``, until the Unix time ``until`` if given. Subscriptions of another tenant end.

        ``operator`` is whether the identity has that role: only operators are told why a plugin is in its state.
        """
        self._leave()
        if tenant != self.tenant:
            self.wishes.clear()
        self.tenant = tenant
        self.operator = operator
        self._live.room(tenant).connections[self] = None
        if until is not None:
            delay = max(0.0, until - time.time())
            self._expiry = asyncio.get_running_loop().call_later(delay, self._live.drop, self, "the token has expired")

    def subscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """Receive these too; one that is there already changes nothing.

        :raises ParameterError: when the connection would hold too many.
        """
        for wish in subscriptions:
            if sum(map(len, self.wishes.values())) >= _MOST_WISHES:
                raise ParameterError("subscribe", f"a connection holds at most {_MOST_WISHES} subscriptions")
            wishes = self.wishes.setdefault(wish.stream, [])
            if wish not in wishes:
                wishes.append(wish)

    def unsubscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """End these. One without filters ends its whole stream; metric names are taken out of longer lists."""
        for gone in subscriptions:
            wishes = [] if gone.open else [rest for w in self.wishes.get(gone.stream, []) for rest in _without(w, gone)]
            if wishes:
                self.wishes[gone.stream] = wishes
            else:
                self.wishes.pop(gone.stream, None)

    def streams(self, published: Published) -> list[Stream]:
        """The streams under which this connection wants the message."""
        found = []
        for stream in _STREAMS_OF[published.message.topic]:
            wishes = self.wishes.get(stream)
            if wishes and any(w.open or w.takes(published.facts) for w in wishes):
                found.append(stream)
        return found

    def close(self) -> None:
        """Receive nothing more and free the place. May be called twice."""
        self._leave()
        self.tenant = None
        self.operator = False
        self.wishes.clear()
        self._live.forget(self)

    def _leave(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self.tenant is not None:
            self._live.room(self.tenant).connections.pop(self, None)


def _without(wish: Subscription, gone: Subscription) -> list[Subscription]:
    """What is left of ``wish``: nothing when it equals ``gone``, fewer metrics when only their names are given."""
    if wish == gone:
        return []
    if gone.labels or gone.severities or not wish.metrics & gone.metrics:
        return [wish]
    rest = wish.metrics - gone.metrics
    return [msgspec.structs.replace(wish, metrics=rest)] if rest else []


class Live:
    """All connections of this process. Every method is called on the event loop.

    ``queue_messages`` bounds what may wait for one connection, and is the number of recent messages that each tenant
    keeps for a resume.
    """

    def __init__(self, bus: Bus, *, max_connections: int, queue_messages: int) -> None:
        self._max = max_connections
        self._limit = queue_messages
        self._rooms: OrderedDict[str, _Room] = OrderedDict()
        self._open: dict[Connection, None] = {}
        self._dropped = 0
        self._end = bus.subscribe(self.publish)

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def dropped(self) -> int:
        """How many connections were ended by the host since the start."""
        return self._dropped

    def connect(self, sink: Sink, encode: Encode) -> Connection:
        """A place for one client. :raises OverloadedError: when all ``max_connections`` are taken."""
        if len(self._open) >= self._max:
            raise OverloadedError(f"all {self._max} live connections are taken (WS_MAX_CONNECTIONS)", retry_after=5)
        connection = Connection(self, sink, encode)
        self._open[connection] = None
        return connection

    def publish(self, message: Message) -> None:
        """Send ``message`` to every connection of its tenant that wants it: the bus's receiver."""
        for room in self._rooms_of(message):
            self._send(room.keep(message), list(room.connections))

    def missed(self, connection: Connection, last_id: str) -> tuple[list[Any], str | None]:
        """What ``connection`` wants and has not seen since ``last_id``, encoded; and why it is not all, or None."""
        room = self.room(connection.tenant or "")
        epoch, _, number = last_id.partition("-")
        if epoch != room.epoch or not number.isdecimal():
            return [], "the server no longer knows this id: it was restarted, or the id is too old or not its own"
        seen = int(number)
        encoded = [
            connection.encode(*published.event(stream, operator=connection.operator))
            for published in room.ring
            if published.number > seen
            for stream in connection.streams(published)
        ]
        gap = bool(room.ring) and room.ring[0].number > seen + 1
        return encoded, f"only the latest {room.ring.maxlen} messages are kept" if gap else None

    def drop(self, connection: Connection, reason: str) -> None:
        """End a connection and tell it why."""
        self._dropped += 1
        log.info("live_connection_dropped", tenant=connection.tenant, reason=reason)
        connection.close()
        connection.sink.drop(reason)

    def close(self) -> None:
        """End every connection: the host stops."""
        self._end()
        for connection in list(self._open):
            self.drop(connection, "the server is shutting down")

    def room(self, tenant: str) -> _Room:
        """The tenant's room, opened when it is not there. Rooms that nobody is in are forgotten, oldest first."""
        room = self._rooms.get(tenant)
        if room is None:
            room = self._rooms[tenant] = _Room(self._limit)
            for name in [name for name, r in self._rooms.items() if not r.connections and r is not room]:
                if len(self._rooms) <= _QUIET_ROOMS:
                    break
                del self._rooms[name]
        self._rooms.move_to_end(tenant)
        return room

    def forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def _rooms_of(self, message: Message) -> list[_Room]:
        if message.tenant:
            room = self._rooms.get(message.tenant)
            return [] if room is None else [room]
        return list(self._rooms.values()) if message.topic == "plugin" else []

    def _send(self, published: Published, connections: list[Connection]) -> None:
        encoded: dict[tuple[Encode, Stream, bool], Any] = {}
        for connection in connections:
            try:
                for stream in connection.streams(published):
                    key = (connection.encode, stream, connection.operator and stream == "plugin")
                    if key not in encoded:
                        encoded[key] = connection.encode(*published.event(stream, operator=connection.operator))
                    if connection.sink.send(encoded[key]) > self._limit:
                        self.drop(connection, f"too slow: over {self._limit} messages were waiting")
                        break
            except Exception:
                log.exception("live_send_failed", message=published.message.id, tenant=connection.tenant)
                self.drop(connection, "sending to this connection failed")
