"""The two written forms of submitted data, read to events. Every error names its path: ``data.sessions[3].userId``."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from analytics_core.errors import ParameterError, near
from analytics_core.events import MAX_ID, MAX_NAME, Event
from analytics_core.events.times import EARLIEST, parse_time

MAX_EVENTS: Final = 100_000
MAX_BYTES: Final = 32 << 20
_FORMS: Final = ("sessions", "events")
_KINDS: Final = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}
_EVENT_KEYS: Final = (
    "event",
    "properties",
    "userId",
    "anonymousId",
    "sessionId",
    "timestamp",
    "messageId",
    "context",
)


def read_events(data: Any, analysis_id: str) -> list[Event]:
    """The events of ``{"sessions": [...]}`` or ``{"events": [...]}``, each marked ``context.analysisId``.

    An event without ``messageId`` is given one of its own, so it is stored once however often the request arrives at
    the log.

    :raises ParameterError: for the first thing that is wrong, or more than `MAX_EVENTS` events or `MAX_BYTES`.
    """
    if not isinstance(data, dict):
        raise ParameterError("data", f"must be an object with one of: {', '.join(_FORMS)}")
    given = [form for form in _FORMS if form in data]
    if len(given) != 1:
        raise ParameterError("data", f"must hold exactly one of: {', '.join(_FORMS)}")
    entries = _list(data[given[0]], f"data.{given[0]}")
    reader = _Reading(analysis_id)
    for index, entry in enumerate(entries):
        if given[0] == "sessions":
            reader.session(entry, f"data.sessions[{index}]")
        else:
            reader.event(entry, f"data.events[{index}]")
    if not reader.events:
        raise ParameterError(f"data.{given[0]}", "holds no event")
    return reader.events


class _Reading:
    def __init__(self, analysis_id: str) -> None:
        self.events: list[Event] = []
        self._analysis_id = analysis_id
        self._bytes = 0

    def session(self, given: Any, path: str) -> None:
        session = _object(given, path)
        ids = {
            "sessionId": _identifier(session, "sessionId", path, required=True),
            "userId": _identifier(session, "userId", path),
            "anonymousId": _identifier(session, "anonymousId", path),
        }
        start = _time(session.get("startTime"), f"{path}.startTime")
        for index, entry in enumerate(_list(session.get("events"), f"{path}.events")):
            where = f"{path}.events[{index}]"
            event = _object(entry, where)
            at = _time(event.get("timestamp"), f"{where}.timestamp")
            self._add(
                _name(event, "type", where),
                where,
                timestamp=start if at is None else at,
                properties=_object(event.get("data") or {}, f"{where}.data"),
                context={},
                message_id=None,
                ids=ids,
            )

    def event(self, given: Any, path: str) -> None:
        event = _object(given, path)
        for key in event:
            if key not in _EVENT_KEYS:
                raise ParameterError(f"{path}.{key}", f"the field is not known{near(str(key), _EVENT_KEYS)}")
        self._add(
            _name(event, "event", path),
            path,
            timestamp=_time(event.get("timestamp"), f"{path}.timestamp"),
            properties=_object(event.get("properties") or {}, f"{path}.properties"),
            context=_object(event.get("context") or {}, f"{path}.context"),
            message_id=_identifier(event, "messageId", path),
            ids={key: _identifier(event, key, path) for key in ("sessionId", "userId", "anonymousId")},
        )

    def _add(
        self,
        name: str,
        path: str,
        *,
        timestamp: str | int | float | None,
        properties: dict[str, Any],
        context: dict[str, Any],
        message_id: str | None,
        ids: dict[str, str | None],
    ) -> None:
        raw = msgspec.json.encode(properties)
        self._bytes += len(raw)
        if len(self.events) >= MAX_EVENTS or self._bytes > MAX_BYTES:
            raise ParameterError(path, f"one submission holds at most {MAX_EVENTS} events and {MAX_BYTES} bytes")
        self.events.append(
            Event(
                name=name,
                properties=Raw(raw),
                context=Raw(msgspec.json.encode({**context, "analysisId": self._analysis_id})),
                timestamp=timestamp,
                message_id=message_id or f"{self._analysis_id}:{len(self.events)}",
                user_id=ids["userId"],
                anonymous_id=ids["anonymousId"],
                session_id=ids["sessionId"],
            )
        )


def _object(given: Any, path: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ParameterError(path, f"must be an object, not {_kind(given)}")
    return given


def _list(given: Any, path: str) -> list[Any]:
    if not isinstance(given, list):
        raise ParameterError(path, f"must be a list, not {_kind(given)}")
    return given


def _name(event: dict[str, Any], key: str, path: str) -> str:
    name = event.get(key)
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        raise ParameterError(f"{path}.{key}", f"must be a text of 1 to {MAX_NAME} characters, not {_kind(name)}")
    return name


def _identifier(entry: dict[str, Any], key: str, path: str, *, required: bool = False) -> str | None:
    value = entry.get(key)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value).encode()) > MAX_ID:
        raise ParameterError(f"{path}.{key}", f"must be a text or a whole number of at most {MAX_ID} bytes")
    return str(value)


def _time(value: Any, path: str) -> str | int | float | None:
    """As it came, checked: the log reads it again with the time of receipt beside it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ParameterError(path, f"must be an ISO 8601 time or an epoch number, not {_kind(value)}")
    try:
        early = parse_time(value) < EARLIEST
    except ValueError as error:
        raise ParameterError(path, str(error)) from None
    if early:
        raise ParameterError(path, f"{value!r} is before 2000-01-01; valid are times from then on")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return _KINDS.get(type(value), type(value).__name__)
