"""The wire between the host and a plugin's process: length-prefixed msgpack frames over a socket pair.

A request is ``(number, op, body)``, an answer ``(number, kind, body)``; ``kind`` is ``ok``, ``error`` or ``beat``.
Batches, Arrow columns and numpy arrays travel as extension types holding Arrow IPC or raw bytes. Nothing that comes
from a plugin's process is ever unpickled.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from msgspec.msgpack import Ext

from analytics_core.errors import (
    AnalyticsError,
    BudgetError,
    HookFailedError,
    HookRefusedError,
    HookTimeoutError,
    LogCorruptionError,
    ParameterError,
    PluginError,
    StorageError,
    TrimmedError,
)
from analytics_core.events import Event, EventBatch, micros, moment
from analytics_core.host.code.traces import RemoteError, line_of, text_of

HEADER: Final = struct.Struct(">I")
LARGEST: Final = 1 << 30
"""Bytes of a frame, in both directions."""

_TRIPLE: Final = b"\x93"
"""How msgpack begins an array of three."""
_BATCH, _ARROW, _NUMPY, _EVENTS, _TRUSTED = 1, 2, 3, 4, 5

T = TypeVar("T")


class BadFrameError(Exception):
    """What came from the other end is no frame, or one over the limit: nothing after it can be read either."""


class Trusted:
    """An object of the host's own, pickled on its way into a plugin's process: what was discovered, a reader's spec."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Events:
    """The wire events that an ``ingest`` hook has returned; they arrive as a list. Their raw JSON travels as JSON."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events


class Failure(Struct, frozen=True):
    """An exception on its way back to the host."""

    kind: Literal["hook", "timeout", "refused", "trimmed", "corrupt", "storage", "plugin", "other"]
    text: str
    hook: str = ""
    seconds: float = 0.0
    seq: int = 0
    first: int = 0
    path: str = ""
    offset: int = 0
    refusal: str | None = None
    """What the ``ValueError`` said that ``ingest`` raised: how an adapter refuses its client's body; or what is wrong
    with ``parameter``."""
    parameter: str = ""
    """The parameter of a question that ``insight`` has refused."""
    over_budget: bool = False
    """Whether a question took more than one may."""
    trace: str = ""
    """The trace of what the plugin has raised."""
    line: str = ""
    """Where in its code that was."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        return msgspec.structs.replace(cls._of(error), trace=text_of(error), line=line_of(error))

    @classmethod
    def _of(cls, error: BaseException) -> Failure:
        text = str(error)
        match error:
            case HookTimeoutError():
                return cls("timeout", text, error.hook)
            case HookFailedError():
                match error.__cause__:
                    case ParameterError() as wrong:
                        problem = str(wrong).removeprefix(f"{wrong.parameter}: ")
                        return cls("hook", text, error.hook, refusal=problem, parameter=wrong.parameter)
                    case BudgetError() as wrong:
                        return cls("hook", text, error.hook, refusal=str(wrong), over_budget=True)
                    case ValueError() as wrong if error.hook == "ingest":
                        return cls("hook", text, error.hook, refusal=str(wrong))
                return cls("hook", text, error.hook)
            case HookRefusedError():
                return cls("refused", text)
            case TrimmedError():
                return cls("trimmed", text, seq=error.seq, first=error.first)
            case LogCorruptionError():
                return cls("corrupt", text, path=str(error.path), offset=error.offset)
            case StorageError():
                return cls("storage", text)
            case PluginError():
                return cls("plugin", text)
        return cls("other", f"{type(error).__name__}: {text}")

    def error(self, plugin: str) -> AnalyticsError:
        """The same exception on the host's side, with the same text, and the trace as its cause."""
        error = self._error(plugin)
        if self.refusal is not None:
            error.__cause__ = self._refusal(self.refusal)
        elif self.trace:
            error.__cause__ = RemoteError(self.trace, self.line)
        return error

    def _refusal(self, text: str) -> Exception:
        if self.parameter:
            return ParameterError(self.parameter, text)
        return BudgetError(text) if self.over_budget else ValueError(text)

    def _error(self, plugin: str) -> AnalyticsError:
        text = self.text.removeprefix(f"Plugin {plugin!r}: ")
        match self.kind:
            case "timeout" | "hook":
                kind = HookTimeoutError if self.kind == "timeout" else HookFailedError
                failed = kind.__new__(kind)
                PluginError.__init__(failed, plugin, text)
                failed.hook = self.hook
                return failed
            case "refused":
                return HookRefusedError(plugin, text)
            case "trimmed":
                return TrimmedError(self.seq, self.first)
            case "corrupt":
                corrupt = LogCorruptionError.__new__(LogCorruptionError, self.text)
                corrupt.path, corrupt.offset = Path(self.path), self.offset
                return corrupt
            case "storage":
                return StorageError(self.text)
        return PluginError(plugin, text)


def _encode(value: Any) -> Any:
    match value:
        case EventBatch():
            said = (value.tenant, micros(value.watermark), _ipc(value.record_batch), value.erased)
            return Ext(_BATCH, msgspec.msgpack.encode(said))
        case pa.Table() | pa.RecordBatch():
            return Ext(_ARROW, b"t" + _ipc(value))
        case pa.Array() | pa.ChunkedArray():
            column = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
            return Ext(_ARROW, b"a" + _ipc(pa.record_batch([column], ["column"])))
        case np.ndarray():
            if value.dtype.hasobject or value.dtype.kind in "mM":
                return value.tolist()
            return Ext(_NUMPY, msgspec.msgpack.encode((value.dtype.str, value.shape, value.tobytes())))
        case np.generic():
            return value.item()
        case Events():
            return Ext(_EVENTS, msgspec.json.encode(value.events))
        case Trusted():
            return Ext(_TRUSTED, pickle.dumps(value.value))
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} cannot leave a plugin's process")


def _ipc(data: pa.Table | pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write(data)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _decode_untrusted(code: int, data: memoryview) -> Any:
    raw = bytes(data)
    match code:
        case 1:
            tenant, watermark, ipc, erased = msgspec.msgpack.decode(raw, type=tuple[str, int, bytes, tuple[str, ...]])
            table = pa.ipc.open_stream(ipc).read_all().combine_chunks()
            batches = table.to_batches()
            empty = EventBatch.empty(tenant, moment(watermark), erased)
            return EventBatch(batches[0], tenant, moment(watermark)) if batches else empty
        case 2:
            table = pa.ipc.open_stream(raw[1:]).read_all()
            return table.column(0).combine_chunks() if raw[:1] == b"a" else table
        case 3:
            dtype, shape, content = msgspec.msgpack.decode(raw, type=tuple[str, tuple[int, ...], bytes])
            return np.frombuffer(content, np.dtype(dtype)).reshape(shape)
        case 4:
            return _event_list.decode(raw)
    raise ValueError(f"frame extension {code} is not known here")


def _decode_trusted(code: int, data: memoryview) -> Any:
    if code == _TRUSTED:
        return pickle.loads(bytes(data))  # noqa: S301 - only the host writes to the socket that the worker reads
    return _decode_untrusted(code, data)


def _as_is(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
_event_list = msgspec.json.Decoder(list[Event])


def encode(value: Any) -> bytes:
    """:raises TypeError: for an object that has no form on the wire."""
    return _encoder.encode(value)


def decode(data: bytes | msgspec.Raw, kind: type[T] | Any = Any, *, trusted: bool = False) -> Any:
    """One body as ``kind``. ``trusted`` is for the worker alone, which believes its host.

    :raises msgspec.ValidationError: when it does not fit.
    """
    return (_decoders.get((kind, trusted)) or _decoder(kind, trusted)).decode(data)


_decoders: dict[tuple[Any, bool], msgspec.msgpack.Decoder[Any]] = {}
_building = Lock()


def _decoder(kind: Any, trusted: bool) -> msgspec.msgpack.Decoder[Any]:
    """Made under a lock: msgspec works out what a Struct holds on first use, and when two threads do that for one type
    at a time, one of them reads what the other has half made, and the process ends in a segmentation fault."""
    with _building:
        hook: Callable[[int, memoryview], Any] = _decode_trusted if trusted else _decode_untrusted
        made = msgspec.msgpack.Decoder(kind, ext_hook=hook, dec_hook=_as_is)
        return _decoders.setdefault((kind, trusted), made)


def frame(number: int, word: str, body: Any) -> tuple[bytes, bytes]:
    """``word`` is the op of a request or the kind of an answer. Two pieces: what comes before the body, and the body,
    which may be large and so is not copied again."""
    before, content = _TRIPLE + encode(number) + encode(word), encode(body)
    length = len(before) + len(content)
    if length > LARGEST:
        raise TypeError(f"a frame of {length} bytes is over the limit of {LARGEST}")
    return HEADER.pack(length) + before, content


def size_of(header: bytes | memoryview) -> int:
    """The length of the frame that ``header`` announces. :raises BadFrameError: when nobody would send such a one."""
    (length,) = HEADER.unpack(header)
    if length > LARGEST:
        raise BadFrameError(f"a frame of {length} bytes; the limit is {LARGEST}")
    return int(length)


def unframe(payload: bytes | memoryview) -> tuple[int, str, msgspec.Raw]:
    """:raises BadFrameError: for anything but a frame."""
    try:
        number, word, body = _frame.decode(payload)
    except msgspec.MsgspecError as error:
        raise BadFrameError(f"what is no frame: {error}") from None
    return number, word, body


_frame = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw])
