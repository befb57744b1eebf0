"""Answers that are still right: kept under all that they depend on, and made once however many ask at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, NamedTuple

ENTRIES: Final = 512
CELLS: Final = 2_000_000
"""Values in the rows of all answers that are kept: about 200 MB at the most, and usually far less."""
CELL_BYTES: Final = 100
"""How much memory a value takes at the most, for what is counted in bytes."""


class Made(NamedTuple):
    """An answer, and whether it depends on nothing but what its key names; ``cells`` is its size beside the values in
    the rows of ``data``."""

    answer: dict[str, Any]
    lasting: bool
    cells: int = 0


class AnswerCache:
    """The latest answers, least recently used ones given up first. For one event loop.

    A key names everything that its answer depends on, the position of the log among it, so an answer is never out of
    date: what has changed has another key. A question that is being answered is not asked again; whoever asks it
    meanwhile waits for the same answer. A failure is kept for nobody.
    """

    def __init__(self, entries: int = ENTRIES, cells: int = CELLS) -> None:
        self._most = entries
        self._most_cells = cells
        self._kept: OrderedDict[Hashable, tuple[dict[str, Any], int]] = OrderedDict()
        self._cells = 0
        self._making: dict[Hashable, asyncio.Future[Made]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Made]]) -> dict[str, Any]:
        """The answer under ``key``, as ``make`` gives it. It is shared: nobody may change it.

        Raises what ``make`` raises.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.ensure_future(make())
            making.add_done_callback(lambda made: self._made(key, made))
        return (await asyncio.shield(making)).answer  # whoever goes away does not take it from the others

    def _made(self, key: Hashable, made: asyncio.Future[Made]) -> None:
        del self._making[key]
        if made.cancelled() or made.exception() is not None:
            return
        answer, lasting, cells = made.result()
        cells += 1 + len(answer.get("columns", ())) * len(answer.get("data", ()))
        if not lasting or cells > self._most_cells // 4:
            return
        self._kept[key] = answer, cells
        self._cells += cells
        while len(self._kept) > self._most or self._cells > self._most_cells:
            _, (_, gone) = self._kept.popitem(last=False)
            self._cells -= gone
