"""From a request's bytes to its events: inflate under a cap, decode in one step, and one by one when that fails."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import BinaryIO

import msgspec
from msgspec import Raw, Struct

from analytics_core.errors import BodyTooLargeError, MalformedBodyError, UnsupportedTypeError
from analytics_core.events import Event, FieldError
from analytics_core.events.times import parse_time
from analytics_core.intake.splitting import split_array, split_object

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

JSON_TYPES = ("application/json", "application/x-ndjson", "text/plain")
_NDJSON = "application/x-ndjson"
_CHUNK = 1 << 16


class Decoded(Struct):
    """One request's events. ``index[i]`` is where ``events[i]`` stood in the request; ``bad`` are the others."""

    events: list[Event]
    index: list[int] | range
    bad: list[FieldError]
    sent_at: int | None = None


class _Envelope(Struct):
    events: Raw = Raw()
    sent_at: Raw = msgspec.field(default=Raw(), name="sentAt")


_event_list = msgspec.json.Decoder(list[Event])
_raw_list = msgspec.json.Decoder(list[Raw])
_event = msgspec.json.Decoder(Event)
_raw = msgspec.json.Decoder(Raw)
_envelope = msgspec.json.Decoder(_Envelope)
_encode = msgspec.json.Encoder().encode
_time = msgspec.json.Decoder(str | int | float | None)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


def decode(body: bytes, content_type: str) -> Decoded:
    """Read one event, an array, ``{"events": [...], "sentAt": ...}`` or NDJSON.

    A bad event is reported by its index and leaves its neighbours alone.

    :raises UnsupportedTypeError: for another content type.
    :raises MalformedBodyError: when the text as a whole is no JSON, or is empty.
    """
    media = content_type.partition(";")[0].strip().lower() or JSON_TYPES[0]
    if media not in JSON_TYPES:
        raise UnsupportedTypeError("Content-Type", media, JSON_TYPES)
    try:
        if media == _NDJSON:
            return _decode_lines(body)
        start = body.lstrip()[:1]
        if start == b"[":
            return _decode_list(body)
        if start == b"{":
            return _decode_object(body)
    except msgspec.DecodeError as error:
        raise MalformedBodyError(str(error)) from None
    except RecursionError:
        raise MalformedBodyError("its JSON is nested too deeply") from None
    raise MalformedBodyError("it is empty" if not start else "it is neither a JSON object nor a JSON array")


def recheck(events: Sequence[Event]) -> Decoded:
    """Events that an adapter has built, through the same checks as if they had come over the wire."""
    texts: list[bytes] = []
    bad: list[FieldError] = []
    index: list[int] = []
    for at, event in enumerate(events):
        try:
            texts.append(_encode(event))
            index.append(at)
        except (UnicodeEncodeError, msgspec.EncodeError) as error:
            bad.append(FieldError(at, "", f"cannot be written as JSON: {error}"))
    decoded = _decode_fit(b"[" + b",".join(texts) + b"]")
    if decoded is None or len(decoded.events) != len(texts):
        decoded = _decode_each([Raw(text) for text in texts])
    bad.extend(FieldError(index[unfit.index], unfit.field, unfit.message) for unfit in decoded.bad)
    return Decoded(decoded.events, [index[at] for at in decoded.index], bad)


def _decode_object(body: bytes) -> Decoded:
    try:
        envelope = _envelope.decode(body)
    except msgspec.ValidationError as error:
        raise MalformedBodyError(str(error)) from None
    except msgspec.DecodeError:
        members = split_object(body)
        envelope = _Envelope(Raw(members.get("events", b"")), Raw(members.get("sentAt", b"")))
    if not len(envelope.events):
        return _decode_each([Raw(body)])
    decoded = _decode_list(bytes(envelope.events))
    if len(envelope.sent_at):
        try:
            value = _time.decode(envelope.sent_at)
            decoded.sent_at = None if value is None else parse_time(value)
        except (msgspec.ValidationError, ValueError) as error:
            raise MalformedBodyError(f"sentAt: {error}") from None
    return decoded


def _decode_list(body: bytes) -> Decoded:
    decoded = _decode_fit(body)
    if decoded is not None:
        return decoded
    try:
        return _decode_each(_raw_list.decode(body))
    except msgspec.ValidationError as error:
        raise MalformedBodyError(f"events: {error}") from None
    except msgspec.DecodeError:
        return _decode_each([Raw(item) for item in split_array(body)])


def _decode_fit(body: bytes) -> Decoded | None:
    """An array in which every event is fit, in one step; None when one is not."""
    if not _is_utf8(body):
        return None
    try:
        events = _event_list.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return Decoded(events, range(len(events)), [])


def _decode_lines(body: bytes) -> Decoded:
    if _is_utf8(body):
        try:
            events = _event.decode_lines(body)
            if events:
                return Decoded(events, range(len(events)), [])
        except (msgspec.DecodeError, RecursionError):
            pass
    lines = [Raw(line) for line in body.splitlines() if line.strip()]
    if not lines:
        raise MalformedBodyError("it is empty")
    return _decode_each(lines)


def _decode_each(texts: list[Raw]) -> Decoded:
    good: list[Event] = []
    index: list[int] = []
    bad: list[FieldError] = []
    for at, text in enumerate(texts):
        try:
            event = _event.decode(text)
            bytes(text).decode("utf-8")
        except UnicodeDecodeError as error:
            bad.append(FieldError(at, "", f"not UTF-8 at byte {error.start} of the event"))
        except (msgspec.DecodeError, RecursionError) as error:
            bad.append(_field_error(at, error))
        else:
            good.append(event)
            index.append(at)
    return Decoded(good, index, bad)


def _field_error(at: int, error: Exception) -> FieldError:
    if isinstance(error, RecursionError):
        return FieldError(at, "", "the JSON is nested too deeply")
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return FieldError(at, "", f"malformed JSON: {text} (NaN and half a surrogate pair are not valid)")
    missing = re.fullmatch(r"Object missing required field `(\w+)`.*", text)
    if missing:
        return FieldError(at, missing[1], "is required")
    found = _PATH.search(text)
    return FieldError(at, found[1] if found else "", text[: found.start()] if found else text)


def _is_utf8(body: bytes) -> bool:
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


# --- content encodings -----------------------------------------------------------------------------------------------


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo one ``Content-Encoding`` (gzip, deflate, zstd or none), never producing more than ``limit`` bytes.

    :raises BodyTooLargeError: as soon as the limit is passed.
    :raises MalformedBodyError: for a truncated or broken stream.
    :raises UnsupportedTypeError: for another encoding.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _ENCODINGS:
        raise UnsupportedTypeError("Content-Encoding", encoding, [*_ENCODINGS, "identity"])
    out = bytearray()
    try:
        with _ENCODINGS[name](body) as stream:
            while chunk := stream.read(_CHUNK):
                out += chunk
                if len(out) > limit:
                    raise BodyTooLargeError(limit, inflated=True)
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise MalformedBodyError(f"its {name} stream is broken: {error}") from None
    return bytes(out)


class _Deflate(BytesIO):
    """``deflate`` as clients send it: zlib format by the RFC, raw deflate by habit."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)

    def read(self, size: int | None = -1, /) -> bytes:
        while not self._inflater.eof:
            source = self._inflater.unconsumed_tail or super().read(_CHUNK)
            if not source:
                raise EOFError("the stream ends too early")
            chunk = self._inflater.decompress(source, _CHUNK if size is None or size < 0 else size)
            if chunk:
                return chunk
        return b""


def _gzip(body: bytes) -> BinaryIO:
    return gzip.GzipFile(fileobj=BytesIO(body))  # type: ignore[return-value]


def _zstd(body: bytes) -> BinaryIO:
    return zstd.ZstdFile(BytesIO(body))  # type: ignore[no-any-return,return-value,unused-ignore]


_ENCODINGS: dict[str, Callable[[bytes], BinaryIO]] = {"gzip": _gzip, "deflate": _Deflate, "zstd": _zstd}
