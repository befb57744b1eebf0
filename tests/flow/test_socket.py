"""The socket.io endpoint, spoken to by the stock client."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import struct
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import msgspec
import pytest
import socketio

from analytics_core.api import socket as endpoint
from analytics_core.api import socket_wire
from analytics_core.config import Live as LiveSettings
from analytics_core.config import Server, Settings
from tests.flow.api_house import AUTH, House, opened

GUARDED = Settings(auth=AUTH)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


class Caller:
    """A stock client whose events can be awaited."""

    def __init__(self) -> None:
        self.sio = socketio.AsyncClient(reconnection=False)
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.sio.on("*", self._heard)
        self.gone = asyncio.Event()
        self.sio.on("disconnect", self._left)

    async def _heard(self, event: str, *data: Any) -> None:
        await self.events.put((event, data[0] if data else None))

    async def _left(self, *_: Any) -> None:
        self.gone.set()

    async def next(self) -> tuple[str, Any]:
        return await asyncio.wait_for(self.events.get(), 10)

    async def call(self, event: str, data: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = await self.sio.call(event, data, timeout=10)
        return answer


@asynccontextmanager
async def caller(
    house: House, *, transports: Any = "websocket", auth: Any = None, **given: Any
) -> AsyncIterator[Caller]:
    one = Caller()
    query = given.pop("query", "")
    await one.sio.connect(house.url + query, transports=transports, auth=auth, **given)
    try:
        yield one
    finally:
        await one.sio.disconnect()


def test_the_whole_conversation() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house, caller(house) as one:
            refused = await one.call("subscribe", {"stream": "metric"})
            assert (refused["ok"], "auth:authenticate" in refused["error"]) == (False, True)
            wrong = await one.call("auth:authenticate", {"token": "nobody", "userId": "u"})
            assert wrong == {"ok": False, "error": "the API key is not known"}
            right = await one.call("auth:authenticate", {"token": "acme-reader", "userId": "u"})
            assert right.items() >= {"ok": True, "tenant": "acme", "role": "reader", "userId": "u"}.items()
            answer = await one.call("subscribe", {"metrics": ["page_views"]})
            assert answer == {
                "ok": True,
                "streams": ["metric"],
                "latest": {"page_views": {"value": 4.0, "window": None}},
            }
            house.publish("metric", "acme", {"metric": "other"})
            pushed = {"metric": "page_views", "value": 1, "window": {"start": "s"}, "labels": {"plan": "pro"}}
            house.publish("metric", "acme", pushed)
            assert await one.next() == ("metric", pushed)
            assert (await one.call("unsubscribe", {"stream": "metric"})) == {"ok": True, "streams": []}
            assert (await one.call("subscribe", {"stream": "insight"}))["ok"]
            house.publish("metric", "acme", pushed)
            house.publish("insight", "acme", {"title": "t"})
            assert await one.next() == ("insight:new", {"title": "t"})

    run(scenario())


def test_every_kind_of_push() -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house) as one:
            assert (await one.call("subscribe", {"stream": ["insight", "alert", "plugin"]}))["ok"]
            assert (await one.call("subscribe", {"stream": "analytics"}))["ok"]
            for severity in ("critical", "high", "medium", "low", "info"):
                house.publish("alert", "default", {"severity": severity})
                assert await one.next() == (f"alert:{severity}", {"severity": severity})
            house.publish("plugin", "", {"state": "active"})
            assert await one.next() == ("plugin:state", {"state": "active"})
            house.publish("pattern", "default", {"key": 'k"\u2028\x1e'})
            assert await one.next() == ("analytics:update", {"type": "pattern", "data": {"key": 'k"\u2028\x1e'}})
            house.publish("insight", "default", {"pad": "é" * 60_000})
            assert [(await one.next())[0] for _ in range(2)] == ["insight:new", "analytics:update"]

    run(scenario())


REFUSED = {
    "nothing": (None, "takes an object"),
    "text": ("metric", "takes an object"),
    "empty": ({}, "stream: is needed; valid are: metric, insight, alert, plugin, analytics"),
    "unknown stream": ({"stream": "metrics"}, "'metrics' is no stream; did you mean 'metric'?"),
    "stream no text": ({"stream": 5}, "stream: must be a text or a list of texts"),
    "unknown member": ({"streams": "metric"}, "streams: is not known here; did you mean 'stream'?"),
    "metrics no list": ({"metrics": {"a": 1}}, "metrics: must be a text or a list of texts"),
    "too many": ({"metrics": [f"m{n}" for n in range(1001)]}, "1001 names are more than 1000"),
    "filters no object": ({"stream": "metric", "filters": ["a"]}, "filters: must be an object with any of"),
    "unknown filter": ({"stream": "metric", "filters": {"label": {}}}, "filters.label: is not known"),
    "severity": ({"stream": "alert", "filters": {"severity": "hi"}}, "filters.severity: 'hi' is no severity"),
    "labels": ({"stream": "metric", "filters": {"labels": {"a": 5}}}, "filters.labels: must be an object of texts"),
    "wrong stream": ({"stream": "plugin", "filters": {"metrics": ["a"]}}, "is for the streams metric, analytics only"),
}


@pytest.mark.parametrize(("given", "why"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("event", ["subscribe", "unsubscribe"])
def test_calls_are_refused_with_a_reason(event: str, given: Any, why: str) -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house) as one:
            answer = await one.call(event, given)
            assert answer["ok"] is False
            assert why in answer["error"]

    run(scenario())


def test_an_unknown_call_is_refused() -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house) as one:
            answer = await one.call("subscribee", {})
            assert (answer["ok"], "auth:authenticate, subscribe, unsubscribe" in answer["error"]) == (False, True)

    run(scenario())


@pytest.mark.parametrize("key", ["acme-operator", "acme-reader"])
def test_only_an_operator_is_told_the_reason_of_a_plugins_state(key: str) -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house, caller(house, auth={"token": key}) as one:
            assert (await one.call("subscribe", {"stream": "plugin"}))["ok"]
            house.publish("plugin", "", {"state": "degraded", "reason": "a row of other"})
            _, told = await one.next()
            assert told == {"state": "degraded", **({"reason": "a row of other"} if "operator" in key else {})}

    run(scenario())


def test_a_password_of_a_proxy_is_no_credential() -> None:
    async def scenario() -> None:
        basic = {"Authorization": "Basic abc"}
        async with opened() as house, caller(house, headers=basic) as one:
            assert (await one.call("subscribe", {"stream": "plugin"}))["ok"]
        async with opened(GUARDED) as house, caller(house, headers=basic) as one:
            assert not (await one.call("subscribe", {"stream": "plugin"}))["ok"]
            assert (await one.call("auth:authenticate", {"token": "acme-reader"}))["ok"]

    run(scenario())


CREDENTIALS: dict[str, dict[str, Any]] = {
    "handshake": {"auth": {"token": "acme-reader"}},
    "header": {"headers": {"Authorization": "Bearer acme-reader"}},
    "query": {"query": "?api_key=acme-reader"},
    "token": {"auth": {"token": jwt.encode({"sub": "u", "tenant": "acme"}, AUTH.jwt_secret)}},
}


@pytest.mark.parametrize("given", CREDENTIALS.values(), ids=CREDENTIALS)
def test_a_credential_may_come_with_the_connection(given: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house, caller(house, **given) as one:
            assert (await one.call("subscribe", {"stream": "insight"}))["ok"]
            house.publish("insight", "other", {"of": "other"})
            house.publish("insight", "acme", {"of": "acme"})
            assert await one.next() == ("insight:new", {"of": "acme"})

    run(scenario())


def test_a_wrong_credential_is_refused_at_the_door() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            why = await _refusal(house, auth={"token": "nobody"})
            assert "the API key is not known" in why
            assert house.live.connections == 0

    run(scenario())


async def _refusal(house: House, **given: Any) -> str:
    one = socketio.AsyncClient(reconnection=False)
    said: list[Any] = []
    one.on("connect_error", said.append)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await one.connect(house.url, transports="websocket", **given)
    return str(said)


def test_sockets_do_not_cross_tenants() -> None:
    async def scenario() -> None:
        every = {"stream": ["metric", "insight", "alert", "plugin", "analytics"], "filters": {}}
        async with (
            opened(GUARDED) as house,
            caller(house, auth={"token": "acme-operator"}) as acme,
            caller(house, auth={"token": "other-operator"}) as other,
            caller(house) as stranger,
        ):
            for one in (acme, other, stranger):
                await one.call("subscribe", every)
            topics = ("metric", "insight", "pattern", "alert", "plugin")
            for topic in topics:
                house.publish(topic, "acme", {"of": "acme", "severity": "high"})
            house.publish("alert", "other", {"severity": "low"})
            assert await other.next() == ("alert:low", {"severity": "low"})  # the first that it sees
            seen = [await acme.next() for _ in range(7)]
            assert [name for name, _ in seen].count("analytics:update") == 3
            # the same connection under another identity: its subscriptions of the first are over
            assert (await other.call("auth:authenticate", {"token": "acme-reader"}))["tenant"] == "acme"
            house.publish("alert", "other", {"severity": "low"})
            house.publish("alert", "acme", {"severity": "info"})
            assert await acme.next() == ("alert:info", {"severity": "info"})
            assert (await other.call("subscribe", {"stream": "plugin"}))["streams"] == ["plugin"]
            assert other.events.empty()
            assert stranger.events.empty()

    run(scenario())


def test_places_are_limited_and_given_back() -> None:
    async def scenario() -> None:
        async with opened(Settings(live=LiveSettings(max_connections=1))) as house:
            async with caller(house):
                why = await _refusal(house)
                assert "all 1 live connections are taken (WS_MAX_CONNECTIONS)" in why
            async with asyncio.timeout(10):
                while house.live.connections:
                    await asyncio.sleep(0.005)
            async with caller(house) as one:
                assert (await one.call("subscribe", {"stream": "metric"}))["ok"]

    run(scenario())


def test_transports_that_never_speak_are_limited_too() -> None:
    async def scenario() -> None:
        async with opened(Settings(live=LiveSettings(max_connections=1))) as house:
            path = "/socket.io/?EIO=4&transport=polling"
            answers = [await house.ask("GET", path) for _ in range(2 * 1 + 16 + 1)]
            assert {a.status for a in answers[:-1]} == {200}
            assert answers[-1].status == 401
            assert b"too many connections" in msgspec.json.encode(answers[-1].body)

    run(scenario())


def test_who_does_not_authenticate_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_AUTHENTICATE_SECONDS", 0.05)

    async def scenario() -> None:
        async with opened(GUARDED) as house, caller(house) as silent, caller(house) as known:
            await known.call("auth:authenticate", {"token": "acme-reader"})
            assert await silent.next() == ("error", {"error": "no auth:authenticate within 0.05 s"})
            await asyncio.wait_for(silent.gone.wait(), 10)
            assert (await known.call("subscribe", {"stream": "metric"}))["ok"]
            assert house.live.connections == 1

    run(scenario())


def test_a_connection_ends_with_its_token() -> None:
    async def scenario() -> None:
        token = jwt.encode({"sub": "u", "tenant": "acme", "exp": time.time() + 1.5}, AUTH.jwt_secret)
        async with opened(GUARDED) as house, caller(house, auth={"token": token}) as one:
            assert await one.next() == ("error", {"error": "the token has expired"})
            await asyncio.wait_for(one.gone.wait(), 10)

    run(scenario())


def test_long_polling_gets_the_same() -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house, transports="polling") as one:
            assert (await one.call("subscribe", {"stream": "metric"}))["ok"]
            for number in range(20):
                house.publish("metric", "default", {"n": number})
            assert [(await one.next())[1]["n"] for _ in range(20)] == list(range(20))

    run(scenario())


def test_nothing_is_lost_or_turned_round_while_a_client_moves_to_its_websocket() -> None:
    async def scenario() -> None:
        async with opened() as house:
            one = Caller()
            sent = 0

            async def subscribe() -> None:
                await one.sio.emit("subscribe", {"stream": "metric"})

            one.sio.on("connect", subscribe)
            connecting = asyncio.ensure_future(one.sio.connect(house.url, transports=["polling", "websocket"]))
            last = time.monotonic() + 0.6  # beyond the moment when frames go out directly
            while time.monotonic() < last:
                house.publish("metric", "default", {"n": sent})
                sent += 1
                await asyncio.sleep(0.3 if sent % 40 == 0 else 0.002)
            await connecting
            house.publish("metric", "default", {"n": sent})
            got = []
            while not got or got[-1] < sent:
                got.append((await one.next())[1]["n"])
            assert got == list(range(got[0], sent + 1))
            await one.sio.disconnect()

    run(scenario())


def test_a_client_that_does_not_read_is_dropped_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_wire, "_LAST_WORDS_SECONDS", 0.05)

    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=20))
        async with opened(settings, read_buffer=4096) as house, caller(house) as sound:
            await sound.call("subscribe", {"stream": "metric"})
            reader, writer = await _lazy_client(house)
            sent = 0
            async with asyncio.timeout(20):
                while not house.live.dropped:
                    house.publish("metric", "default", {"n": sent, "pad": "x" * 20_000})
                    assert (await sound.next())[1]["n"] == sent
                    sent += 1
                while len(house.server.connections) > 1:
                    await asyncio.sleep(0.005)
                rest = await reader.read()  # it was cut: what had been sent, then the end
            assert b"too slow" not in rest
            assert house.live.connections == 1
            house.publish("metric", "default", {"n": sent})
            assert (await sound.next())[1] == {"n": sent}
            writer.close()

    run(scenario())


def test_a_slow_client_reads_why_it_was_dropped() -> None:
    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=20))
        async with opened(settings, read_buffer=4096) as house:
            reader, writer = await _lazy_client(house)
            async with asyncio.timeout(20):
                while not house.live.dropped:
                    house.publish("metric", "default", {"pad": "x" * 20_000})
                    await asyncio.sleep(0)
                frame = ""
                while not frame.startswith('42["error"'):
                    frame = await _frame(reader)
                assert json.loads(frame[2:])[1] == {"error": "too slow: over 20 messages were waiting"}
                assert await _frame(reader) == "41"
            writer.close()

    run(scenario())


def test_a_client_that_catches_up_gets_all_in_order() -> None:
    async def scenario() -> None:
        settings = Settings(live=LiveSettings(queue_messages=1000))
        async with opened(settings, read_buffer=4096) as house:
            reader, writer = await _lazy_client(house)
            for number in range(100):
                house.publish("metric", "default", {"n": number, "pad": "x" * 20_000})
                await asyncio.sleep(0)
            async with asyncio.timeout(20):
                for number in range(100):
                    found = json.loads((await _frame(reader))[2:])
                    assert found[1]["n"] == number
            assert house.live.dropped == 0
            writer.close()

    run(scenario())


async def _lazy_client(house: House) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket with small buffers that has subscribed to metrics and reads only when it is told to."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    host, port = house.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(
        f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    assert (await _frame(reader)).startswith("0{")
    writer.write(_masked("40"))
    assert (await _frame(reader)).startswith("40{")
    writer.write(_masked('420["subscribe",{"stream":"metric"}]'))
    assert (await _frame(reader)).startswith('430[{"ok":true')
    return reader, writer


def _masked(text: str) -> bytes:
    """A client's text frame; a mask of zeros leaves the text as it is."""
    return struct.pack("!BBI", 0x81, 0x80 | len(text), 0) + text.encode()


async def _frame(reader: asyncio.StreamReader) -> str:
    """The next text frame; a frame that is masked or in parts would be a fault of the server."""
    head, size = await reader.readexactly(2)
    assert head == 0x81
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await reader.readexactly(8))
    return (await reader.readexactly(size)).decode()


@pytest.mark.parametrize("size", [0, 100, 125, 126, 65_000, 65_536, 200_000])
def test_frames_of_every_length(size: int) -> None:
    async def scenario() -> None:
        async with opened() as house:
            reader, writer = await _lazy_client(house)
            house.publish("metric", "default", {"p": "x" * size})
            async with asyncio.timeout(10):
                assert json.loads((await _frame(reader))[2:]) == ["metric", {"p": "x" * size}]
            writer.close()

    run(scenario())


def test_messages_are_encoded_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    class Counting(socket_wire.LivePacket):
        def __init__(self, text: str) -> None:
            nonlocal made
            made += 1
            super().__init__(text)

    monkeypatch.setattr(socket_wire, "LivePacket", Counting)

    async def scenario() -> None:
        async with opened() as house, caller(house) as one, caller(house) as two, caller(house) as three:
            for each in (one, two, three):
                await each.call("subscribe", {"stream": "metric"})
            for number in range(5):
                house.publish("metric", "default", {"n": number})
            for each in (one, two, three):
                assert [(await each.next())[1]["n"] for _ in range(5)] == list(range(5))
            assert made == 5

    run(scenario())


def test_foreign_pages_may_not_open_a_socket() -> None:
    async def scenario() -> None:
        settings = Settings(server=Server(cors_origins=("https://a.example",)))
        async with opened(settings) as house:
            path = "/socket.io/?EIO=4&transport=polling"
            for origin, status in (("https://a.example", 200), (house.url, 200), ("https://evil.example", 400)):
                answer = await house.ask("GET", path, headers={"Origin": origin})
                assert answer.status == status
                assert answer.headers.getall("Access-Control-Allow-Origin", []) == ([origin] if status == 200 else [])

    run(scenario())


@pytest.mark.parametrize(
    "nonsense", ["", "9", "4", "42", '42["subscribe"', "42" + "[" * 30_000, "451-[]", "x" * 70_000]
)
def test_nonsense_ends_or_is_passed_over_and_hurts_nobody(nonsense: str) -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house) as sound:
            url = house.url + "/socket.io/?EIO=4&transport=websocket"
            async with aiohttp.ClientSession() as http, http.ws_connect(url) as rude:
                await rude.receive()
                await rude.send_str("40")
                await rude.receive()
                await rude.send_str(nonsense)
                for _ in range(2):  # the first may be taken for an attachment
                    await rude.send_str('421["subscribe",{"stream":"metric"}]')
                await asyncio.wait_for(rude.receive(), 10)  # an answer or the end
            assert (await sound.call("subscribe", {"stream": "metric"}))["ok"]
            house.publish("metric", "default", {"n": 1})
            assert await sound.next() == ("metric", {"n": 1})

    run(scenario())


@pytest.mark.parametrize("wish", [{"stream": ["metric", "alert"]}, {"metrics": ["views"]}, {"stream": "alarm"}])
def test_both_transports_understand_and_send_the_same(wish: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened() as house, caller(house) as one:
            answer = await one.call("subscribe", wish)
            query = "&".join(f"{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in wish.items())
            async with house.http.get(f"{house.url}/api/v1/stream?{query}") as stream:
                if not answer["ok"]:
                    assert msgspec.json.decode(await stream.read())["detail"] == answer["error"]
                    return
                messages = [
                    ("metric", {"metric": "views"}),
                    ("metric", {"metric": "sales"}),
                    ("alert", {"severity": "low"}),
                ]
                for topic, body in messages:
                    house.publish(topic, "default", body)
                wanted = 1 if "metrics" in wish else 3
                over_socket = [await one.next() for _ in range(wanted)]
                text = b""
                async with asyncio.timeout(10):
                    while text.count(b"data: ") < wanted:
                        text += await stream.content.readany()
                blocks = [b.decode().split("\n") for b in text.split(b"\n\n") if b"data: " in b]
                over_http = [(lines[0][7:], json.loads(lines[2][6:])) for lines in blocks]
                assert over_http == over_socket

    run(scenario())
