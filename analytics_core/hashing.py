"""64-bit hashes of strings, many at a time: equal on every machine and in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]

_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_MASKS: U64 = np.frombuffer(b"".join(b"\xff" * n + b"\0" * (8 - n) for n in range(9)), np.uint64)
"""By how many bytes of a word count, its first ones."""
_BLOCK = 8_192
"""Strings hashed at a time: arrays of 64 KB stay in the processor's cache, and the allocator keeps their memory."""


def hash_strings(values: Sequence[str | bytes] | pa.Array, seed: int = 0) -> U64:
    """64-bit hashes, shape ``(n,)``, equal for equal strings on every machine and in every process.

    ``values``: a sequence, or an Arrow string or dictionary column (about 0.05 us a value), where null hashes like "".
    Many are hashed together, eight bytes at a step (multiply and xor-shift, as in wyhash and splitmix64). Not for
    untrusted keys where a chosen collision would matter: give a secret ``seed`` there.
    """
    if isinstance(values, pa.DictionaryArray):
        words = hash_strings(values.dictionary, seed)
        padded = np.append(words, hash_strings([""], seed))  # the code of null is one past the last word
        codes: npt.NDArray[np.int64] = values.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        return padded[codes]
    data, offsets = _arrow_bytes(values) if isinstance(values, pa.Array) else _joined_bytes(values)
    return _hashes(data, offsets, seed)


def _joined_bytes(values: Sequence[str | bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    encoded = [v if isinstance(v, bytes) else v.encode() for v in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _arrow_bytes(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    if column.null_count or column.type != pa.string():
        column = column.cast(pa.string()).fill_null("")
    _, offsets, data = column.buffers()
    if not len(column) or offsets is None:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data or b"", np.uint8), bounds.astype(np.int64)


def hash_rows(matrix: npt.NDArray[np.uint8], seed: int = 0) -> U64:
    """Hash each row of a ``(n, length)`` byte matrix to 64 bits, shape ``(n,)``."""
    n, length = matrix.shape
    return _hashes(matrix.ravel(), np.arange(n + 1, dtype=np.int64) * length, seed)


def _hashes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seed: int) -> U64:
    """The hash of each string ``data[offsets[i]:offsets[i + 1]]``, shape ``(len(offsets) - 1,)``."""
    out = np.empty(len(offsets) - 1, np.uint64)
    for start in range(0, len(out), _BLOCK):
        block = offsets[start : start + _BLOCK + 1]
        out[start : start + _BLOCK] = _block_hashes(data[block[0] : block[-1]], block - block[0], seed)
    return out


def _block_hashes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seed: int) -> U64:
    begins, lengths = offsets[:-1], offsets[1:] - offsets[:-1]
    shortest, longest = int(lengths.min()), int(lengths.max())
    state = lengths.astype(np.uint64)
    state *= _SEEDS[0]
    state ^= np.uint64(seed)
    words = _words_at(data)
    for start in range(0, longest, 8):
        if shortest == longest:
            _mix(state, words[start::longest] & _MASKS[min(longest - start, 8)])
            continue
        rows = slice(None) if start < shortest else np.flatnonzero(lengths > start)
        lanes = words[begins[rows] + start] & _MASKS[np.minimum(lengths[rows] - start, 8)]
        state[rows] = _mix(state[rows], lanes)
    return _finish(state)


def _words_at(data: npt.NDArray[np.uint8]) -> U64:
    """The eight bytes from each byte on as a word, shape ``(len(data),)``, zeros beyond the end: a view, unaligned."""
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    return np.ndarray((len(data),), np.uint64, padded, strides=(1,))


def _mix(state: U64, lanes: U64) -> U64:
    """Take one word more into each ``state``, in place."""
    state ^= lanes
    state *= _SEEDS[0]
    state ^= state >> np.uint64(29)
    state *= _SEEDS[1]
    state ^= state >> np.uint64(32)
    return state


def _finish(state: U64) -> U64:
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state
