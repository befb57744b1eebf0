"""128-bit hashes of event ids, and the sorted arrays that hold them in memory and beside each sealed segment.

The hash is NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO 1999) over 32-bit words, taken twice with
independent keys, then the bijective finaliser of MurmurHash3. The keys are drawn per tenant from the secret of the data
directory, so whoever sends ids can aim neither at another id (at most 2^-64 a pair) nor at another tenant.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b, shake_128
from operator import mul
from pathlib import Path
from typing import Any, Final, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]
"""Shape ``(2, n)``: the high and the low half of n hashes."""
Pair = tuple[int, int]
"""Both halves of one hash."""
Mask = npt.NDArray[np.bool_]

SECRET_BYTES: Final = 32
_LONGEST: Final = 256
_FEW: Final = 6
_BLOCK: Final = 4096
_TENANTS: Final = 4096
_WORDS: Final = _LONGEST // 8 + 1
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_MIX_SHIFT: Final = np.uint64(33)
_MIX: Final = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_TAIL: Final = np.array([2 ** (8 * kept) - 1 for kept in range(9)], np.uint64)
_EVEN: Final = [sum(0xFFFFFFFF << 64 * at for at in range(words)) for words in range(_WORDS + 1)]
_UNPACK: Final = [struct.Struct(f"<{words}Q").unpack for words in range(_WORDS + 1)]
_HEAD = struct.Struct("<4sI8sqqq")  # magic, CRC of the arrays, fingerprint of the secret, first, end, count
_MAGIC: Final = b"AID\x01"


def read_secret(path: Path) -> bytes:
    """The secret of a data directory; made, durably, when there is none."""
    if path.exists() and len(secret := path.read_bytes()) == SECRET_BYTES:
        return secret
    secret = os.urandom(SECRET_BYTES)
    _replace(path, [secret])
    return secret


class _Keys(NamedTuple):
    """NH keys of one tenant, for both halves of the hash.

    ``words``: shape ``(2, 1, 2 * _WORDS)``. ``lanes``: the same of each half as two integers, the keys of the even and
    of the odd 32-bit words, 64 bits apart.
    """

    words: npt.NDArray[np.uint32]
    lanes: list[tuple[int, int]]


class IdHasher:
    """Hashes of (tenant, event id) under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[str, _Keys] = {}
        self.fingerprint = blake2b(b"fingerprint", key=secret, digest_size=8).digest()

    def __call__(self, tenant: str, ids: pa.Array) -> Hashes:
        """Hashes of a string column without nulls, shape ``(2, len(ids))``, straight from its buffers."""
        keys = self._keys.get(tenant)
        if keys is None:
            if len(self._keys) >= _TENANTS:
                self._keys.clear()
            keys = self._keys[tenant] = self._draw(tenant)
        count = len(ids)
        if count <= _FEW:
            few = [_one(*self._shortened(text.encode()), keys.lanes) for text in ids.to_pylist()]
            return np.array([[pair[half] for pair in few] for half in (0, 1)], np.uint64)
        if count <= _BLOCK:
            return self._block(ids, keys.words)
        return np.hstack([self._block(ids.slice(at, _BLOCK), keys.words) for at in range(0, count, _BLOCK)])

    def _draw(self, tenant: str) -> _Keys:
        """Two keys for each 64-bit word of the longest id and for its length."""
        drawn = shake_128(self._secret + tenant.encode()).digest(2 * 8 * _WORDS)
        halves = (int.from_bytes(drawn[at : at + 8 * _WORDS], "little") for at in (0, 8 * _WORDS))
        lanes = [(half & _EVEN[-1], half >> 32 & _EVEN[-1]) for half in halves]
        return _Keys(np.frombuffer(drawn, "<u4").reshape(2, 1, 2 * _WORDS), lanes)

    def _shortened(self, text: bytes) -> tuple[int, bytes]:
        """Length and words of an id; a digest stands for one too long for the keys, told apart by the length."""
        if len(text) <= _LONGEST:
            return len(text), text
        return len(text), blake2b(text, key=self._secret, digest_size=32).digest()

    def _block(self, ids: pa.Array, keys: npt.NDArray[np.uint32]) -> Hashes:
        _, ends, data = ids.buffers()
        bounds = np.frombuffer(ends, np.int32, len(ids) + 1, 4 * ids.offset).astype(np.int64)
        low, size = int(bounds[0]), int(bounds[-1] - bounds[0])
        text = np.zeros(size + _LONGEST, np.uint8)
        if size:
            text[:size] = np.frombuffer(data, np.uint8, size, low)
        starts, lengths = bounds[:-1] - low, bounds[1:] - bounds[:-1]
        words = np.maximum((lengths + 7) >> 3, 1)
        narrow, wide = int(words.min()), int(words.max())
        if narrow == wide and 8 * wide <= _LONGEST:
            return _nh(_message(text, starts, lengths, wide), keys)
        out = np.empty((2, len(ids)), np.uint64)
        for width in np.unique(words).tolist():
            at = np.flatnonzero(words == width)
            if 8 * width <= _LONGEST:
                out[:, at] = _nh(_message(text, starts[at], lengths[at], width), keys)
            else:
                out[:, at] = _nh(self._digests(text, starts[at], lengths[at]), keys)
        return out

    def _digests(self, text: npt.NDArray[np.uint8], starts: Any, lengths: Any) -> npt.NDArray[np.uint64]:
        pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
        digests = b"".join(self._shortened(text[at : at + length].tobytes())[1] for at, length in pairs)
        return np.column_stack([lengths.astype(np.uint64), np.frombuffer(digests, np.uint64).reshape(-1, 4)])


def _one(length: int, data: bytes, keys: list[tuple[int, int]]) -> list[int]:
    """Both halves of the hash of one id, in plain integers: for a few ids this is cheaper than arrays.

    The message is one integer whose even 32-bit words are added to their keys in one step, and so are the odd ones.
    """
    words = max(-(-len(data) // 8), 1) + 1
    mask, unpack = _EVEN[words], _UNPACK[words]
    message = int.from_bytes(data, "little") << 64 | length
    even, odd = message & mask, message >> 32 & mask
    halves = []
    for even_keys, odd_keys in keys:
        left = unpack((even + even_keys & mask).to_bytes(8 * words, "little"))
        right = unpack((odd + odd_keys & mask).to_bytes(8 * words, "little"))
        total = sum(map(mul, left, right)) & 0xFFFFFFFFFFFFFFFF
        for factor in _MIX:
            total = ((total ^ (total >> 33)) * factor) & 0xFFFFFFFFFFFFFFFF
        halves.append(total ^ (total >> 33))
    return halves


def _message(text: npt.NDArray[np.uint8], starts: Any, lengths: Any, words: int) -> npt.NDArray[np.uint64]:
    """Ids of ``words`` 64-bit words each, zero padded, behind their lengths, shape ``(n, words + 1)``."""
    width = 8 * words
    windows: Any = np.ndarray((len(text) - width + 1,), f"V{width}", text, 0, (1,))
    message = np.empty((len(starts), words + 1), np.uint64)
    message[:, 0] = lengths
    message[:, 1:] = windows[starts].view(np.uint64).reshape(-1, words)
    message[:, words] &= _TAIL[lengths - (width - 8)]
    return message


def _nh(message: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint32]) -> Hashes:
    halves = message.view(np.uint32)
    summed = (halves + keys[:, :, : halves.shape[1]]).view(np.uint64)
    odd = summed >> _SHIFT
    summed &= _LOW
    out: Hashes = np.vecdot(summed, odd)
    out ^= out >> _MIX_SHIFT
    out *= np.uint64(_MIX[0])
    out ^= out >> _MIX_SHIFT
    out *= np.uint64(_MIX[1])
    out ^= out >> _MIX_SHIFT
    return out


class IdRun:
    """Hashes sorted by their high half, in memory or mapped."""

    __slots__ = ("high", "low")

    def __init__(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> None:
        self.high = high
        self.low = low

    @classmethod
    def of(cls, hashes: Hashes) -> IdRun:
        order = np.argsort(hashes[0])
        return cls(hashes[0][order], hashes[1][order])

    @classmethod
    def merged(cls, runs: list[IdRun]) -> IdRun:
        if len(runs) == 1:
            return runs[0]
        if not runs:
            return cls.of(np.empty((2, 0), np.uint64))
        return cls.of(np.array([np.concatenate([r.high for r in runs]), np.concatenate([r.low for r in runs])]))

    def __len__(self) -> int:
        return len(self.high)

    def contains(self, hashes: Hashes) -> Mask:
        """Which of ``(2, n)`` hashes are here, shape ``(n,)``."""
        high, low = hashes
        if not len(self.high):
            return np.zeros(len(high), np.bool_)
        at = self.high.searchsorted(high)
        found: Mask = self.high.take(at, mode="clip") == high
        rest = np.flatnonzero(found)
        found[rest] = False
        while len(rest):  # more than once only for equal high halves of different ids
            rest = rest[self.high[at[rest]] == high[rest]]
            found[rest] = self.low[at[rest]] == low[rest]
            at[rest] += 1
            rest = rest[~found[rest] & (at[rest] < len(self.high))]
        return found


# --- beside a sealed segment -----------------------------------------------------------------------------------------


def write_run(path: Path, run: IdRun, first: int, end: int, fingerprint: bytes) -> IdRun:
    """Write the ids of the sealed segment ``[first, end)``; the same run, mapped.

    It is on disk afterwards: from then on the segment itself may go.
    """
    parts = [np.ascontiguousarray(half).data.cast("B") for half in (run.high, run.low)] if len(run) else []
    body = b"".join(parts)
    head = _HEAD.pack(_MAGIC, google_crc32c.value(body), fingerprint, first, end, len(run))
    _replace(path, [head, body])
    return _mapped(path, len(run))


def read_run(path: Path, first: int, end: int, fingerprint: bytes) -> tuple[IdRun, npt.NDArray[np.uint64]] | None:
    """The mapped run of a sealed segment, and a copy of its hashes, shape ``(2, n)``; None unless it is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    magic, crc, secret, starts, ends, count = _HEAD.unpack_from(data)
    body = pa.py_buffer(data).slice(_HEAD.size)
    if (magic, secret, starts, ends) != (_MAGIC, fingerprint, first, end) or body.size != 16 * count:
        return None
    if google_crc32c.value(body) != crc:
        return None
    return _mapped(path, count), np.frombuffer(body, np.uint64).reshape(2, count)


def _mapped(path: Path, count: int) -> IdRun:
    with pa.memory_map(str(path)) as mapped:  # its buffers outlive it, its file descriptor does not
        data = mapped.read_buffer()
    halves = np.frombuffer(data, np.uint64, 2 * count, _HEAD.size).reshape(2, count)
    return IdRun(halves[0], halves[1])


def _replace(path: Path, parts: list[bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
