"""One value of each event by its position in the log: codes in a mapped file, and the words that they stand for.

A cache, like the runs in user order: what is torn or of another format is not there.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

MOST_WORDS: Final = 100_000
"""A field with more values than this is none that is grouped by or compared with a few."""
_FORMAT: Final = 1
_GROWTH: Final = 1 << 20
"""Positions by which the file grows."""
_NUMBER: Final = frozenset("-0123456789")
"""How the JSON text of a number begins, and none else."""
_BLOCK: Final = 1 << 12
"""Positions that are written together; where none has a value there is a hole, which takes no space on disk."""


class _Listing(Struct, frozen=True):
    """What is beside the codes. It is written after them, so that codes at or above ``upto`` mean nothing."""

    field: str
    upto: int = 0
    words: tuple[str, ...] = ()
    given_up: bool = False
    format: int = _FORMAT
    order: str = sys.byteorder


class ValueColumn:
    """The JSON text of ``field`` for each event of a tenant below `upto`, as far as it has one.

    One thread at a time adds. What was added does not change, so that anybody may read it meanwhile.
    """

    def __init__(self, path: Path, field: str) -> None:
        self._path = path
        self._field = field
        self._codes = np.zeros(0, np.int32)
        listing = self._listed()
        self.upto = listing.upto
        self.given_up = listing.given_up
        """Whether there are more than `MOST_WORDS`: then it is of no use."""
        self.words = list(listing.words)
        """Code 1 is the first of them; code 0 means none."""
        self._code = {word: code for code, word in enumerate(self.words, 1)}
        self._numbers = np.full(1, np.nan)
        self._saved = self.upto

    def _listed(self) -> _Listing:
        try:
            found = msgspec.json.decode(self._path.with_suffix(".json").read_bytes(), type=_Listing)
            if (found.format, found.order, found.field) == (_FORMAT, sys.byteorder, self._field):
                self._map(0 if found.given_up else found.upto)
                return found
        except (OSError, ValueError, msgspec.MsgspecError):
            pass  # it is no column, so it is made anew
        return _Listing(self._field)

    def at(self, places: I64) -> I32:
        """The code of each position, all of them below `upto`; 0 where there is no value. Shape of ``places``."""
        codes = self._codes
        return codes[places] if len(codes) else np.zeros(len(places), np.int32)

    def numbers(self) -> npt.NDArray[np.float64]:
        """The number of each code, shape ``(words + 1,)``: NaN where there is none, or one beyond every float."""
        known = self._numbers
        words = self.words[len(known) - 1 :]
        if words:
            more = np.array([float(word) if word[0] in _NUMBER else np.nan for word in words])
            more[np.isinf(more)] = np.nan
            self._numbers = known = np.concatenate([known, more])
        return known

    def extend(self, upto: int, found: Iterable[tuple[I64, pa.DictionaryArray]]) -> None:
        """Go on to ``upto``, which is beyond `upto`. ``found`` are positions between the two and their JSON texts.

        :raises OSError: when it cannot be written; then it is as it was.
        """
        codes = np.zeros(upto - self.upto, np.int32)
        for places, words in found:
            table = np.array([self._coded(word) for word in words.dictionary.to_pylist()], np.int32)
            if len(self.words) > MOST_WORDS:
                self.given_up, self.words, self._code, codes = True, [], {}, codes[:0]
                break
            if len(table):
                codes[places - self.upto] = table[words.indices.to_numpy(zero_copy_only=False)]
        if not self.given_up:
            self._write(codes)
            self._map(upto)
        self.upto = upto

    def _coded(self, word: str) -> int:
        code = self._code.get(word)
        if code is None:
            self.words.append(word)
            code = self._code[word] = len(self.words)
        return code

    def _write(self, codes: I32) -> None:
        """By ordinary writes: where the disk is full, one into a mapping would end the process."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self.upto:
            self._path.touch()
        with self._path.open("r+b") as file:  # when somebody has deleted it, what was in it is not to be had again
            for start in range(0, len(codes), _BLOCK):
                block = codes[start : start + _BLOCK]
                if block.any():
                    file.seek(4 * (self.upto + start))
                    file.write(block.data)
            file.flush()
            end = -(-(self.upto + len(codes)) // _GROWTH) * _GROWTH
            if os.fstat(file.fileno()).st_size < 4 * end:
                os.ftruncate(file.fileno(), 4 * end)

    def _map(self, length: int) -> None:
        """See the codes of ``length`` positions at least. :raises OSError: when the file does not have them."""
        if length <= len(self._codes):
            return
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 4 * length:
                raise FileNotFoundError(f"{self._path} ends at {size // 4} of {length}")
            self._codes = np.frombuffer(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), np.int32)

    def save(self) -> None:
        """Let a later start go on from here. :raises OSError: when it cannot be written."""
        if self.upto == self._saved:
            return
        listing = _Listing(self._field, self.upto, tuple(self.words), self.given_up)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode(listing))
        draft.replace(self._path.with_suffix(".json"))
        if self.given_up:
            self._path.unlink(missing_ok=True)
        self._saved = self.upto
