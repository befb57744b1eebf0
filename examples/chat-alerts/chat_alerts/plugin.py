"""The hook of the plugin; what a message looks like and how it is sent is in the modules beside this one."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from threading import Lock
from typing import Final

from analytics_core import Channel, Delivery, Notification, hookimpl
from chat_alerts.messages import message
from chat_alerts.sending import post

_REMEMBERED: Final = 1_000


class ChatAlerts:
    """Notifications in a chat. Calls run at the same time, so what is remembered is behind a lock."""

    def __init__(self) -> None:
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    @hookimpl
    def deliver(self, notification: Notification, channel: Channel) -> Delivery:
        fingerprint = _fingerprint(notification, channel)
        with self._lock:
            if fingerprint in self._sent:
                return Delivery(delivered=True, detail="sent before")
        settings = channel.settings
        body = message(notification, settings)
        delivery = post(settings["url"], body, fingerprint, settings.get("timeout_seconds", 5.0))
        if delivery.delivered:
            with self._lock:
                self._sent[fingerprint] = None
                while len(self._sent) > _REMEMBERED:
                    self._sent.popitem(last=False)
        return delivery


def _fingerprint(notification: Notification, channel: Channel) -> str:
    """The same for each attempt: one notification goes to several channels, and is resolved under its own id."""
    words = "\n".join((channel.name, notification.id, notification.status))
    return sha256(words.encode()).hexdigest()[:32]
