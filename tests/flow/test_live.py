"""Live fan-out and Server-Sent Events: encoded once, bounded, resumable, and bound to a tenant."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import msgspec
import pytest

from analytics_core.api import sse
from analytics_core.config import Live as LiveSettings
from analytics_core.config import Settings
from analytics_core.errors import OverloadedError, ParameterError
from analytics_core.live import Connection, Live, Subscription
from analytics_core.records import Message
from tests.flow.api_house import AUTH, House, opened

GUARDED = Settings(auth=AUTH)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


# --- Live itself -----------------------------------------------------------------------------------------------------


class Mailbox:
    """A sink that keeps what it is given. ``full`` makes it answer like a client that reads nothing."""

    def __init__(self, *, full: bool = False, broken: bool = False) -> None:
        self.got: list[tuple[str, Any]] = []
        self.full = full
        self.broken = broken
        self.dropped: str | None = None

    def send(self, encoded: tuple[str, str, Any]) -> int:
        if self.broken:
            raise OSError("no way out")
        self.got.append((encoded[0], encoded[2]))
        return len(self.got) if self.full else 0

    def drop(self, reason: str) -> None:
        self.dropped = reason

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.got]


class Encoder:
    """Counts how often it is asked; two of them are two transports."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, event: str, id_: str, data: bytes) -> tuple[str, str, Any]:
        self.calls.append(event)
        return event, id_, msgspec.json.decode(data)


class NoBus:
    def publish(self, message: Message) -> None: ...

    def subscribe(self, receiver: Any) -> Any:
        return lambda: None

    async def close(self) -> None: ...


def live(queue: int = 10, places: int = 100) -> Live:
    return Live(NoBus(), max_connections=places, queue_messages=queue)


def join(room: Live, tenant: str | None, *wishes: Subscription, encoder: Any = None, **how: Any) -> Any:
    mailbox = Mailbox(**how)
    connection = room.connect(mailbox, encoder or Encoder())
    if tenant is not None:
        connection.enter(tenant)
        connection.subscribe(wishes)
    return mailbox, connection


def metric(tenant: str, name: str = "views", value: float = 1.0, **labels: str) -> Message:
    body = {"metric": name, "value": value, "window": None, "labels": labels}
    return Message(id=f"{name}{value}", topic="metric", tenant=tenant, body=msgspec.json.encode(body))


def message(topic: Any, tenant: str, **body: Any) -> Message:
    return Message(id="m", topic=topic, tenant=tenant, body=msgspec.json.encode(body))


ALL = tuple(Subscription(stream) for stream in ("metric", "insight", "alert", "plugin", "analytics"))


def test_a_message_is_encoded_once_for_all_receivers_of_a_transport() -> None:
    room, one, two = live(), Encoder(), Encoder()
    boxes = [join(room, "acme", Subscription("metric"), encoder=encoder)[0] for encoder in [one] * 50 + [two] * 50]
    room.publish(metric("acme"))
    assert all(box.names == ["metric"] for box in boxes)
    assert (one.calls, two.calls) == (["metric"], ["metric"])


def test_nothing_is_encoded_when_nobody_wants_it() -> None:
    room, encoder = live(), Encoder()
    join(room, "acme", Subscription("alert"), encoder=encoder)
    room.publish(metric("acme"))
    assert encoder.calls == []


@pytest.mark.parametrize("topic", ["metric", "insight", "pattern", "alert", "plugin"])
def test_no_message_crosses_a_tenant(topic: Any) -> None:
    room = live()
    acme, other = join(room, "acme", *ALL)[0], join(room, "other", *ALL)[0]
    nobody, gone = join(room, None)[0], join(room, "acme", *ALL)
    gone[1].close()
    room.publish(message(topic, "acme", metric="m", severity="high"))
    assert acme.names
    assert (other.got, nobody.got, gone[0].got) == ([], [], [])
    moved, connection = join(room, "acme", *ALL)
    connection.enter("other")  # another identity on the same connection: nothing of the first goes on
    room.publish(message(topic, "acme"))
    room.publish(message(topic, "other"))
    assert moved.got == []


def test_the_hosts_own_messages_are_of_plugins_only() -> None:
    room = live()
    acme, other = join(room, "acme", *ALL)[0], join(room, "other", *ALL)[0]
    room.publish(message("plugin", "", name="p", state="active"))
    assert acme.names == other.names == ["plugin:state"]
    room.publish(message("insight", ""))
    assert acme.names == other.names == ["plugin:state"]


def test_only_operators_are_told_why_a_plugin_is_in_its_state() -> None:
    """The reason may quote an exception, and that an event of another tenant."""
    room, encoder = live(), Encoder()
    reader, connection = join(room, "acme", *ALL, encoder=encoder)
    operator, operating = join(room, "acme", encoder=encoder)
    operating.enter("acme", operator=True)
    operating.subscribe(ALL)
    room.publish(message("plugin", "", plugin="p", state="degraded", reason="hook 'process' failed: 'bob@globex'"))
    assert reader.got == [("plugin:state", {"plugin": "p", "state": "degraded"})]
    assert operator.got[0][1]["reason"] == "hook 'process' failed: 'bob@globex'"
    room.publish(message("insight", "acme", reason="a member like any other"))
    assert reader.got[-1] == operator.got[-1]
    epoch = room.room("acme").epoch
    assert next(members for _, _, members in room.missed(connection, f"{epoch}-0")[0]) == reader.got[0][1]
    assert next(members for _, _, members in room.missed(operating, f"{epoch}-0")[0]) == operator.got[0][1]
    operating.enter("acme")  # another identity on the same connection
    room.publish(message("plugin", "", plugin="p", state="active", reason="x"))
    assert operator.got[-1] == ("plugin:state", {"plugin": "p", "state": "active"})


NAMES = {
    "metric": ["metric", "analytics:update"],
    "insight": ["insight:new", "analytics:update"],
    "pattern": ["analytics:update"],
    "alert": ["alert:critical"],
    "plugin": ["plugin:state"],
}


@pytest.mark.parametrize(("topic", "names"), NAMES.items())
def test_what_events_are_called(topic: Any, names: list[str]) -> None:
    room = live()
    box, _ = join(room, "acme", *ALL)
    room.publish(message(topic, "acme", severity="critical", n=1))
    assert box.names == names
    if "analytics:update" in names:
        assert box.got[-1][1] == {"type": topic, "data": {"severity": "critical", "n": 1}}
    else:
        assert box.got[-1][1] == {"severity": "critical", "n": 1}


FILTERS = {
    "names": (Subscription("metric", metrics=frozenset({"views", "x"})), ["views1", "views2"]),
    "labels": (Subscription("metric", labels={"plan": "pro"}), ["views2", "sales3"]),
    "two labels": (Subscription("metric", labels={"plan": "pro", "land": "de"}), ["sales3"]),
    "name and label": (Subscription("metric", metrics=frozenset({"views"}), labels={"plan": "pro"}), ["views2"]),
    "nothing fits": (Subscription("metric", metrics=frozenset({"none"})), []),
}


@pytest.mark.parametrize(("wish", "expected"), FILTERS.values(), ids=FILTERS)
def test_filters(wish: Subscription, expected: list[str]) -> None:
    room = live()
    box, _ = join(room, "acme", wish)
    room.publish(metric("acme", "views", 1))
    room.publish(metric("acme", "views", 2, plan="pro"))
    room.publish(metric("acme", "sales", 3, plan="pro", land="de"))
    assert [f"{data['metric']}{data['value']:.0f}" for _, data in box.got] == expected


def test_severities() -> None:
    room = live()
    box, _ = join(room, "acme", Subscription("alert", severities=frozenset({"high", "critical"})))
    for severity in ("low", "high", "critical"):
        room.publish(message("alert", "acme", severity=severity))
    assert box.names == ["alert:high", "alert:critical"]


def test_overlapping_wishes_send_once_and_end_one_by_one() -> None:
    room = live()
    views, both = Subscription("metric", frozenset({"views"})), Subscription("metric", frozenset({"views", "sales"}))
    box, connection = join(room, "acme", views, both, views)
    room.publish(metric("acme"))
    assert len(box.got) == 1
    connection.unsubscribe([views])  # the names go out of longer lists too
    room.publish(metric("acme"))
    assert len(box.got) == 1
    room.publish(metric("acme", "sales"))
    assert len(box.got) == 2
    connection.unsubscribe([Subscription("metric")])
    room.publish(metric("acme", "sales"))
    assert len(box.got) == 2


def test_a_body_that_cannot_be_read_passes_no_filter_and_stops_nothing() -> None:
    room = live()
    box, _ = join(room, "acme", Subscription("metric", frozenset({"views"})))
    room.publish(Message(id="m", topic="metric", tenant="acme", body=b"[1]"))
    room.publish(metric("acme"))
    assert box.names == ["metric"]


def test_a_slow_connection_is_dropped_with_a_reason_and_the_others_go_on() -> None:
    room = live(queue=3)
    slow, _ = join(room, "acme", Subscription("metric"), full=True)
    quick, _ = join(room, "acme", Subscription("metric"))
    for number in range(10):
        room.publish(metric("acme", value=number))
    assert slow.dropped == "too slow: over 3 messages were waiting"
    assert len(slow.got) == 4
    assert (len(quick.got), quick.dropped) == (10, None)
    assert (room.connections, room.dropped) == (1, 1)


def test_a_connection_that_fails_is_dropped_and_the_others_go_on() -> None:
    room = live()
    broken, _ = join(room, "acme", Subscription("metric"), broken=True)
    sound, _ = join(room, "acme", Subscription("metric"))
    room.publish(metric("acme"))
    assert broken.dropped
    assert sound.names == ["metric"]


def test_places_are_limited_and_given_back() -> None:
    room = live(places=2)
    _, first = join(room, "acme")
    join(room, None)
    with pytest.raises(OverloadedError, match="all 2 live connections are taken"):
        join(room, "acme")
    first.close()
    first.close()
    join(room, "acme")
    assert room.connections == 2


def test_subscriptions_of_one_connection_are_limited() -> None:
    _, connection = join(live(), "acme")
    with pytest.raises(ParameterError, match="at most 256"):
        connection.subscribe(Subscription("metric", frozenset({f"m{n}"})) for n in range(1000))


def test_a_connection_ends_with_its_token() -> None:
    async def scenario() -> None:
        room = live()
        box, connection = join(room, None)
        connection.enter("acme", time.time() - 1)
        async with asyncio.timeout(5):
            while box.dropped is None:
                await asyncio.sleep(0)
        assert box.dropped == "the token has expired"
        assert room.connections == 0

    run(scenario())


def test_what_was_missed() -> None:
    room, encoder = live(queue=5), Encoder()
    _, connection = join(room, "acme", Subscription("metric", frozenset({"views"})), encoder=encoder)
    ids = [_id_of(room, connection, metric("acme", value=n)) for n in range(4)]
    room.publish(metric("acme", "sales"))  # not wanted, so not sent again
    room.publish(metric("other", "views"))
    again, gap = room.missed(connection, ids[1])
    assert ([data["value"] for _, _, data in again], gap) == ([2, 3], None)
    for n in range(4, 9):
        room.publish(metric("acme", value=n))
    again, gap = room.missed(connection, ids[1])
    assert ([data["value"] for _, _, data in again], gap) == ([4, 5, 6, 7, 8], "only the latest 5 messages are kept")
    for unknown in ("", "x", "deadbeef-1", ids[0].replace("-", "-x")):
        assert room.missed(connection, unknown)[0] == []
        assert "no longer knows" in (room.missed(connection, unknown)[1] or "")


def _id_of(room: Live, connection: Connection, sent: Message) -> str:
    """Publish, and give the id under which the connection got it."""
    seen: list[str] = []
    connection.sink.send = lambda encoded: seen.append(encoded[1]) or 0  # type: ignore[func-returns-value,method-assign]
    room.publish(sent)
    return seen[0]


def test_another_tenants_id_resumes_nothing() -> None:
    room = live()
    _, acme = join(room, "acme", Subscription("metric"))
    _, other = join(room, "other", Subscription("metric"))
    id_ = _id_of(room, acme, metric("acme"))
    room.publish(metric("acme", value=2))
    room.publish(metric("other", value=3))
    again, gap = room.missed(other, id_)
    assert again == []
    assert gap


def test_rooms_that_nobody_is_in_are_forgotten() -> None:
    room = live()
    _, stays = join(room, "stays", Subscription("metric"))
    id_ = _id_of(room, stays, metric("stays"))
    for number in range(600):
        join(room, f"t{number}")[1].close()
    again, gap = room.missed(stays, id_)
    assert (again, gap) == ([], None)
    assert len(room._rooms) <= 257


# --- Server-Sent Events ----------------------------------------------------------------------------------------------


class Reader:
    """The events of a stream, read by the format's own rules."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, *, comments: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with asyncio.timeout(10):
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    raise EOFError
                line = line.rstrip("\n")
                if line.startswith(":") and comments:
                    return {"comment": line[1:].strip()}
                if not line and found:
                    return found
                name, _, value = line.partition(": ")
                if name in ("event", "id"):
                    found[name] = value
                elif name == "data":
                    found[name] = msgspec.json.decode(value)


@asynccontextmanager
async def stream(house: House, query: str = "", key: str | None = None, **headers: str) -> AsyncIterator[Reader]:
    given = {**({"X-API-Key": key} if key else {}), **headers}
    async with house.http.get(f"{house.url}/api/v1/stream{query}", headers=given) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield Reader(response)


def test_a_stream_of_events() -> None:
    async def scenario() -> None:
        async with opened() as house, stream(house) as reader:
            house.publish("metric", "default", {"metric": "views", "value": 1})
            house.publish("insight", "default", {"title": "t"})
            house.publish("alert", "default", {"severity": "high"})
            house.publish("plugin", "", {"state": "active"})
            got = [await reader.next() for _ in range(4)]
            assert [e["event"] for e in got] == ["metric", "insight:new", "alert:high", "plugin:state"]
            assert got[0]["data"] == {"metric": "views", "value": 1}
            assert len({e["id"] for e in got}) == 4

    run(scenario())


def test_only_an_operator_is_streamed_the_reason_of_a_plugins_state() -> None:
    async def scenario() -> None:
        async with (
            opened(GUARDED) as house,
            stream(house, "?stream=plugin", "acme-operator") as operator,
            stream(house, "?stream=plugin", "acme-writer") as writer,
        ):
            house.publish("plugin", "", {"state": "degraded", "reason": "a row of other"})
            assert (await writer.next())["data"] == {"state": "degraded"}
            assert (await operator.next())["data"]["reason"] == "a row of other"

    run(scenario())


def test_a_stream_is_narrowed() -> None:
    async def scenario() -> None:
        async with (
            opened() as house,
            stream(house, "?metrics=views,sales&labels=plan:pro") as labelled,
            stream(house, "?stream=alert,analytics&severity=high") as severe,
        ):
            for plan in ("free", "pro"):
                house.publish("metric", "default", {"metric": "views", "value": 1, "labels": {"plan": plan}})
            for severity in ("low", "high"):
                house.publish("alert", "default", {"severity": severity})
                house.publish("insight", "default", {"severity": severity})
            assert (await labelled.next())["data"]["labels"] == {"plan": "pro"}
            assert [(await severe.next())["event"] for _ in range(2)] == ["alert:high", "analytics:update"]

    run(scenario())


def test_resuming_after_a_break() -> None:
    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=5))
        async with opened(settings) as house:
            async with stream(house, "?stream=metric") as reader:
                house.publish("metric", "default", {"n": 0})
                last = (await reader.next())["id"]
            for n in (1, 2):
                house.publish("metric", "default", {"n": n})
            async with stream(house, "?stream=metric", **{"Last-Event-ID": last}) as reader:
                house.publish("metric", "default", {"n": 3})
                assert [(await reader.next())["data"]["n"] for _ in range(3)] == [1, 2, 3]
            for n in range(4, 20):
                house.publish("metric", "default", {"n": n})
            async with stream(house, f"?stream=metric&lastEventId={last}") as reader:
                gap = await reader.next()
                assert (gap["event"], "id" in gap) == ("gap", False)
                assert gap["data"] == {"lastEventId": last, "reason": "only the latest 5 messages are kept"}
                assert [(await reader.next())["data"]["n"] for _ in range(5)] == [15, 16, 17, 18, 19]

    run(scenario())


def test_streams_do_not_cross_tenants() -> None:
    async def scenario() -> None:
        async with (
            opened(GUARDED) as house,
            stream(house, "?stream=metric", "other-operator") as other,
            stream(house, "?stream=metric&api_key=acme-reader") as acme,
        ):
            house.publish("metric", "acme", {"of": "acme"})
            house.publish("metric", "other", {"of": "other"})
            first = await acme.next()
            assert first["data"] == {"of": "acme"}
            assert (await other.next())["data"] == {"of": "other"}
            async with stream(house, "?stream=metric", "other-operator", **{"Last-Event-ID": first["id"]}) as resumed:
                assert (await resumed.next())["event"] == "gap"
                house.publish("metric", "other", {"of": "other again"})
                assert (await resumed.next())["data"] == {"of": "other again"}

    run(scenario())


def test_a_stream_ends_with_its_token() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            token = jwt.encode({"sub": "u", "tenant": "acme", "exp": time.time() + 1.5}, AUTH.jwt_secret)
            async with stream(house, "", None, Authorization=f"Bearer {token}") as reader:
                last = await reader.next()
                assert (last["event"], last["data"]) == ("error", {"error": "the token has expired"})
                with pytest.raises(EOFError):
                    await reader.next()

    run(scenario())


def test_heartbeats_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)

    async def scenario() -> None:
        async with opened() as house, stream(house) as reader:
            for _ in range(2):
                assert await reader.next(comments=True) == {"comment": "heartbeat"}

    run(scenario())


def test_a_client_that_left_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)

    async def scenario() -> None:
        async with opened(Settings(live=LiveSettings(max_connections=1))) as house:
            async with stream(house):
                refused = await house.ask("GET", "/api/v1/stream")
                assert refused.status == 503
                assert "all 1 live connections are taken" in refused.body["detail"]
            async with asyncio.timeout(10):
                while house.live.connections:
                    await asyncio.sleep(0.005)
            async with stream(house):
                pass

    run(scenario())


def test_a_stream_that_is_not_read_is_dropped_with_an_error_at_its_end() -> None:
    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=20))
        async with opened(settings, read_buffer=4096) as house:
            reader, writer = await _lazy_client(house, "/api/v1/stream?stream=metric")
            body = {"metric": "views", "pad": "x" * 20_000}
            async with asyncio.timeout(20):
                await reader.readuntil(b"retry: 2000\n\n")
                while not house.live.dropped:
                    house.publish("metric", "default", body)
                    await asyncio.sleep(0)
                rest = await reader.read()
            assert b'event: error\ndata: {"error":"too slow: over 20 messages were waiting"}\n\n' in rest
            assert house.live.connections == 0
            writer.close()

    run(scenario())


def test_a_stream_that_is_never_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LAST_WORDS_SECONDS", 0.05)

    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=20))
        async with opened(settings, read_buffer=4096) as house:
            reader, writer = await _lazy_client(house, "/api/v1/stream?stream=metric")
            await reader.readuntil(b"retry: 2000\n\n")
            async with asyncio.timeout(20):
                while not house.live.dropped:
                    house.publish("metric", "default", {"pad": "x" * 20_000})
                    await asyncio.sleep(0)
                while house.server.connections:
                    await asyncio.sleep(0.005)
                assert b"event: error" not in await reader.read()
            writer.close()

    run(scenario())


async def _lazy_client(house: House, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client with small buffers, which reads only when it is told to."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    host, port = house.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


def test_the_end_of_the_server_is_said() -> None:
    async def scenario() -> None:
        async with opened() as house, stream(house) as reader:
            closing = asyncio.ensure_future(house.app.shutdown())
            last = await reader.next()
            assert (last["event"], last["data"]) == ("error", {"error": "the server is shutting down"})
            await closing

    run(scenario())
