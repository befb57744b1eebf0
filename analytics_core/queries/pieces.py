"""What is held of a tenant's events in user order: pieces, each later in the log than those before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from analytics_core.lake.order_files import StoredRun
from analytics_core.lake.user_order import Run, joined
from analytics_core.queries.identity import Identity
from analytics_core.queries.levels import Level
from analytics_core.queries.marks import Columns
from analytics_core.queries.user_order import View, Words

SMALL: Final = 1 << 16
"""Runs in memory up to this size become one at once, and are not worth a file."""
NOBODY: Final = Identity()


class Piece(NamedTuple):
    """A run of ids and what of the log is in it and those before it: all below ``upto``, ``seen`` events; ``stored`` is
    its place in the files, None for one in memory. ``level`` has its ids joined to persons."""

    run: Run
    level: Level
    upto: int
    seen: int
    stored: StoredRun | None = None


class Held(Struct, frozen=True, eq=False):
    """What is held of a tenant. Replaced as a whole, so that whoever reads it needs no lock."""

    pieces: tuple[Piece, ...]
    names: Words
    identity: Identity = NOBODY

    @property
    def upto(self) -> int:
        return self.pieces[-1].upto if self.pieces else 0

    @property
    def seen(self) -> int:
        return self.pieces[-1].seen if self.pieces else 0

    @property
    def in_memory(self) -> int:
        return sum(len(piece.run) for piece in self.pieces if piece.stored is None)

    def stored(self, upto: int) -> tuple[StoredRun, ...]:
        """The first ones in files, as far as they hold nothing from ``upto`` on: together all below some position."""
        runs = takewhile(lambda run: run is not None and run.upto <= upto, (piece.stored for piece in self.pieces))
        return tuple(run for run in runs if run is not None)

    def having(self, piece: Piece, at: int, count: int = 0) -> Held:
        """With ``piece`` instead of ``count`` others from ``at`` on."""
        return replace(self, pieces=(*self.pieces[:at], piece, *self.pieces[at + count :]))

    def view(self, position: int, columns: Columns) -> View:
        """The events below ``position``, which is not beyond ``upto``."""
        levels = [
            piece.level if piece.upto <= position else replace(piece.level, below=position)
            for piece in self.pieces
            if len(piece.run)
        ]
        return View(levels, self.names.words, columns)


def piece_of(run: Run, upto: int, seen: int, stored: StoredRun | None = None) -> Piece:
    return Piece(run, Level(run), upto, seen, stored)


def in_memory(pieces: Sequence[Piece]) -> int:
    """Where those begin that are in memory."""
    return next((i for i, piece in enumerate(pieces) if piece.stored is None), len(pieces))


def gathered(pieces: tuple[Piece, ...], writing: Run | None) -> tuple[Piece, ...]:
    """The last ones in memory as one, as long as each is no more than twice as large as what comes after it;
    ``writing`` and those before it are being written."""
    while len(pieces) > 1:
        before, last = pieces[-2:]
        if before.stored is not None or before.run is writing or len(before.run) > 2 * len(last.run) + SMALL:
            break
        pieces = (*pieces[:-2], piece_of(joined([before.run, last.run]), last.upto, last.seen))
    return pieces
