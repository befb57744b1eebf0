"""Notifications against a chat that answers as it is told, over real HTTP."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from analytics_core import Channel, Notification
from analytics_core.testing import check_plugin, started
from chat_alerts.messages import message
from chat_alerts.plugin import ChatAlerts

PATH = "/hooks/xyzzy-secret"
ALERT = {
    "key": "errors",
    "title": "Errors over 5 %",
    "severity": "high",
    "value": 7.5,
    "threshold": 5,
    "labels": {"page": "/checkout"},
}


class Chat:
    """Remembers what was posted, and answers ``status`` and ``text``, or nothing while it is ``silent``."""

    def __init__(self):
        self.posted, self.keys = [], []
        self.status, self.text, self.headers, self.url = 200, "ok", {}, ""
        self.silent = asyncio.Event()
        self.silent.set()

    async def take(self, request):
        self.posted.append(await request.json())
        self.keys.append(request.headers["Idempotency-Key"])
        await self.silent.wait()
        return web.Response(status=self.status, text=self.text, headers=self.headers)


@asynccontextmanager
async def chatting():
    chat, app = Chat(), web.Application()
    app.router.add_route("*", PATH, chat.take)
    async with TestServer(app) as server:
        chat.url = str(server.make_url(PATH))
        yield chat
        chat.silent.set()


def channel(url, name="on-call", **settings):
    return Channel(name=name, kind="chat", settings={"url": url, **settings})


def notification(status="firing", alerts=(ALERT,), id_="n-1", group="checkout"):
    return Notification(id=id_, status=status, group=group, alerts=list(alerts))


def deliver(plugin, *arguments):
    return asyncio.to_thread(plugin.deliver, *arguments)


def test_a_notification_is_posted():
    async def scenario():
        async with chatting() as chat:
            found = await deliver(started(ChatAlerts), notification(), channel(chat.url, username="analytics"))
            assert (found.delivered, found.retry, found.detail) == (True, False, "200 OK")
            (body,) = chat.posted
            assert body["text"] == "FIRING: checkout (1 alert)"
            assert body["username"] == "analytics"
            assert body["attachments"] == [
                {
                    "fallback": "Errors over 5 %",
                    "title": "Errors over 5 %",
                    "text": "severity: high\nvalue: 7.5\nthreshold: 5\npage: /checkout",
                    "color": "#d00000",
                    "footer": "n-1",
                }
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("status", "retry"),
    [(400, False), (403, False), (404, False), (410, False), (408, True), (429, True), (500, True), (503, True)],
)
def test_what_may_pass_is_tried_again_and_what_may_not_is_given_up(status, retry):
    async def scenario():
        async with chatting() as chat:
            chat.status, chat.text, chat.headers = status, f"no such hook: {PATH}", {"Retry-After": "30"}
            found = await deliver(started(ChatAlerts), notification(), channel(chat.url))
            assert (found.delivered, found.retry) == (False, retry)
            assert found.detail.startswith(str(status))
            assert "no such hook: /..." in found.detail
            assert "Retry-After: 30" in found.detail

    asyncio.run(scenario())


def test_a_redirect_is_not_followed():
    async def scenario():
        async with chatting() as chat:
            chat.status, chat.headers = 302, {"Location": PATH}
            found = await deliver(started(ChatAlerts), notification(), channel(chat.url))
            assert (found.delivered, found.retry) == (False, False)
            assert len(chat.posted) == 1

    asyncio.run(scenario())


def test_a_chat_that_says_nothing_is_left_after_the_timeout():
    async def scenario():
        async with chatting() as chat:
            chat.silent.clear()
            found = await deliver(started(ChatAlerts), notification(), channel(chat.url, timeout_seconds=0.1))
            assert (found.delivered, found.retry) == (False, True)
            assert "timed out" in found.detail

    asyncio.run(scenario())


def test_a_chat_that_is_not_there_is_tried_again():
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}{PATH}"
        found = started(ChatAlerts).deliver(notification(), channel(url))
    assert (found.delivered, found.retry) == (False, True)
    assert "refused" in found.detail


@pytest.mark.parametrize("url", ["http://host:port/xyzzy-secret", "ftps://host/xyzzy-secret", "xyzzy-secret"])
def test_an_address_that_is_none_is_given_up_and_not_shown(url):
    found = started(ChatAlerts).deliver(notification(), channel(url))
    assert not found.delivered
    assert "xyzzy-secret" not in found.detail


def test_what_was_delivered_is_not_sent_again():
    async def scenario():
        async with chatting() as chat:
            plugin, mine, other = started(ChatAlerts), channel(chat.url), channel(chat.url, "managers")
            chat.status = 500
            await deliver(plugin, notification(), mine)
            chat.status = 200
            for given in (notification(), notification(), notification("resolved")):
                assert (await deliver(plugin, given, mine)).delivered
            assert (await deliver(plugin, notification(), other)).delivered
            assert len(chat.posted) == 4, "a retry, and each channel and status once"
            assert chat.keys[0] == chat.keys[1], "the retry is known as one"
            assert len(set(chat.keys)) == 3

    asyncio.run(scenario())


# --- what a message looks like


def test_a_resolved_alert_is_green():
    made = message(notification("resolved"), {})
    assert made["text"] == "RESOLVED: checkout (1 alert)"
    assert made["attachments"][0]["color"] == "#2eb886"
    assert "username" not in made


def test_of_many_alerts_only_the_first_are_shown():
    made = message(notification(alerts=[{"key": f"a{n}"} for n in range(12)]), {"most_alerts": 2})
    assert [each["fallback"] for each in made["attachments"]] == ["a0", "a1", "and 10 more"]
    assert made["attachments"][-1]["footer"] == "n-1"
    assert message(notification(alerts=[]), {})["attachments"] == []


def test_text_from_events_is_neither_markup_nor_a_mention():
    made = message(notification(group="<!channel> & @here", alerts=[{"title": "<http://x|click>" + 400 * "x"}]), {})
    assert made["text"].startswith("FIRING: &lt;!channel&gt; &amp; @\u200bhere")
    title = made["attachments"][0]["title"]
    assert title.startswith("&lt;http://x|click&gt;x")
    assert len(title) < 330


# --- the contract


def test_the_contract_is_kept(analytics_host):
    assert check_plugin(ChatAlerts).checks["hooks"] == "passed"
    host = analytics_host(ChatAlerts)
    host.settle()
    assert host.plugin("chat-alerts").state == "active"
