"""A notification as the JSON of an incoming webhook: the part that Slack and Mattermost have in common.

https://api.slack.com/reference/messaging/attachments and
https://developers.mattermost.com/integrate/reference/message-attachments describe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from analytics_core import Notification

_GOOD: Final = "#2eb886"
_COLORS: Final = {"info": "#439fe0", "low": "#439fe0", "medium": "#daa038", "high": "#d00000", "critical": "#d00000"}
_LONGEST: Final = 300
"""Characters of one text, which may come from an event."""


def message(notification: Notification, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``text`` is what a phone shows; one attachment for each alert, up to ``settings.most_alerts``."""
    most = settings.get("most_alerts", 10)
    shown, more = notification.alerts[:most], len(notification.alerts) - most
    attachments = [_attachment(alert, notification.status) for alert in shown]
    if more > 0:
        attachments.append({"fallback": f"and {more} more", "text": f"and {more} more"})
    attachments[-1:] = [{**last, "footer": _plain(notification.id)} for last in attachments[-1:]]
    made = {"text": _headline(notification), "attachments": attachments}
    return {**made, "username": settings["username"]} if "username" in settings else made


def _headline(notification: Notification) -> str:
    count = len(notification.alerts)
    return f"{notification.status.upper()}: {_plain(notification.group)} ({count} alert{'s' * (count != 1)})"


def _attachment(alert: Mapping[str, Any], status: str) -> dict[str, Any]:
    title = _plain(alert.get("title") or alert.get("key") or "alert")
    severity = str(alert.get("severity", ""))
    return {
        "fallback": title,
        "title": title,
        "text": "\n".join(_lines(alert)),
        "color": _GOOD if status == "resolved" else _COLORS.get(severity, _COLORS["medium"]),
    }


def _lines(alert: Mapping[str, Any]) -> list[str]:
    said = {key: alert.get(key) for key in ("severity", "value", "threshold")}
    labels = alert.get("labels")
    lines = {**said, **(labels if isinstance(labels, Mapping) else {})}
    return [f"{_plain(key)}: {_plain(value)}" for key, value in lines.items() if value is not None]


def _plain(value: object) -> str:
    """Text that is neither markup nor a mention: an event's name must not ring everybody's phone."""
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")
