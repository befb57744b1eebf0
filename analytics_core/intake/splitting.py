"""Cutting JSON into its parts without judging them, for bodies in which one part is unfit.

The decoder of the usual path refuses a whole text for one lone surrogate (which browsers send when they cut an emoji)
or one NaN. The standard library's scanner steps over both, so each part can be decoded, and refused, on its own.
"""

from __future__ import annotations

import json
import re
from typing import Final

from analytics_core.errors import MalformedBodyError

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_scan = json.JSONDecoder().raw_decode


def split_array(body: bytes) -> list[bytes]:
    """The items of a JSON array as they are written. :raises MalformedBodyError: when it is no array."""
    cutter = _Cutter(body, "[")
    items: list[bytes] = []
    while cutter.more("]", first=not items):
        items.append(cutter.value())
    return items


def split_object(body: bytes) -> dict[str, bytes]:
    """The members of a JSON object as they are written. :raises MalformedBodyError: when it is no object."""
    cutter = _Cutter(body, "{")
    members: dict[str, bytes] = {}
    while cutter.more("}", first=not members):
        name = json.loads(cutter.value())
        cutter.expect(":")
        members[str(name)] = cutter.value()
    return members


class _Cutter:
    """A place in a text. Bytes that are no UTF-8 pass through unharmed."""

    def __init__(self, body: bytes, opening: str) -> None:
        self._text = body.decode("utf-8", "surrogateescape")
        self._at = 0
        self.expect(opening)

    def more(self, closing: str, *, first: bool) -> bool:
        """Step over a comma, or over the end."""
        if self._peek() == closing:
            self._at += 1
            if self._peek():
                raise MalformedBodyError(f"there is more after the end (byte {self._at})")
            return False
        if not first:
            self.expect(",")
        return True

    def value(self) -> bytes:
        start = self._at + len(_SPACE.match(self._text, self._at)[0])  # type: ignore[index]
        try:
            _, self._at = _scan(self._text, start)
        except json.JSONDecodeError as error:
            raise MalformedBodyError(f"invalid JSON (character {start})") from error
        return self._text[start : self._at].encode("utf-8", "surrogateescape")

    def expect(self, sign: str) -> None:
        if self._peek() != sign:
            raise MalformedBodyError(f"{sign!r} is missing (character {self._at})")
        self._at += 1

    def _peek(self) -> str:
        self._at += len(_SPACE.match(self._text, self._at)[0])  # type: ignore[index]
        return self._text[self._at : self._at + 1]
