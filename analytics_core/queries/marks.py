"""Which events of a question in user order are meant: by their names where those tell it, else by one SQL query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core.events import moment
from analytics_core.lake.user_order import I32, I64, Mask, Run
from analytics_core.metrics.filters import Field, Filter, conjunction

PLACE: Final = "(CAST(partition AS BIGINT) << 48 | seq)"
"""SQL: the `Run.place` of an event."""
_DENSE: Final = 8
"""A table over all log positions is made when at most so many are in it for each that has a value."""


class Rows(Protocol):
    """`queries.reader.Reader`, as far as it is needed: SQL over ``ever``, all events of the tenant."""

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table: ...


class Places:
    """A value for some log positions and ``default`` for all others. ``places`` (n,) in any order, none twice."""

    def __init__(self, places: I64, values: npt.NDArray[Any], default: int) -> None:
        self._default = default
        self._low = int(places.min()) if len(places) else 0
        span = int(places.max()) - self._low + 1 if len(places) else 0
        self._dense = span <= _DENSE * len(places)
        if self._dense:
            self._values = np.full(span + 2, default, values.dtype)  # the first and the last stand for all outside
            self._values[places - self._low + 1] = values
        else:
            by = np.argsort(places)
            self._places, self._values = places[by], values[by]

    def of(self, places: I64) -> npt.NDArray[Any]:
        """The value of each position, shape of ``places``."""
        if self._dense:
            return self._values[np.clip(places - (self._low - 1), 0, len(self._values) - 1)]
        at = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        return np.where(self._places[at] == places, self._values[at], self._default)


class Meant:
    """What is asked of each event: ``filters`` that it must hold, ``marks`` by name and the text of ``values``.

    Only events with ``low <= timestamp < high`` (microseconds) are looked at; ``marked_only``, only those with a mark.
    ``names`` are the words of the run's codes.
    """

    def __init__(
        self,
        rows: Rows,
        names: Sequence[str],
        filters: Sequence[Filter],
        marks: Mapping[str, Sequence[Filter]],
        values: Sequence[str],
        low: int,
        high: int,
        *,
        marked_only: bool,
    ) -> None:
        self.low, self.high = low, high
        self.words: dict[str, Sequence[str]] = {}
        self._marked_only = marked_only
        self._values: dict[str, Places] = {}
        self._kept: Mask | Places | None = _by_name(filters, names) if filters else None
        self._marks: dict[str, Mask | Places | None] = {mark: _by_name(asked, names) for mark, asked in marks.items()}
        hard = [mark for mark, found in self._marks.items() if found is None]
        filtered = bool(filters) and self._kept is None
        if hard or values or filtered:
            self._ask(rows, filters if hard or values or filtered else (), marks, hard, values, filtered)

    def _ask(
        self,
        rows: Rows,
        filters: Sequence[Filter],
        marks: Mapping[str, Sequence[Filter]],
        hard: Sequence[str],
        values: Sequence[str],
        filtered: bool,
    ) -> None:
        """One query for all that names do not tell."""
        bound: dict[str, Any] = {"low": moment(self.low), "high": moment(self.high)}

        def bind(value: Any) -> str:
            bound[f"p{len(bound)}"] = value
            return f"$p{len(bound) - 1}"

        columns = [f"coalesce({conjunction(marks[mark], bind)}, false) AS m{i}" for i, mark in enumerate(hard)]
        columns += [f"{Field.of(name, 'values').text(bind)} AS v{i}" for i, name in enumerate(values)]
        where = f"timestamp >= $low AND timestamp < $high AND {conjunction(filters, bind)}"
        if not filtered:
            wanted = [] if values and not self._marked_only else [*marks] if values else hard
            where += "".join(
                f" {'OR' if i else 'AND ('} ({conjunction(marks[mark], bind)})" for i, mark in enumerate(wanted)
            )
            where += ")" if wanted else ""
        found = rows.ever(f"SELECT {', '.join([f'{PLACE} AS place', *columns])} FROM ever WHERE {where}", bound)
        self._take(found, hard, values, filtered)

    def _take(self, found: pa.Table, hard: Sequence[str], values: Sequence[str], filtered: bool) -> None:
        places = found.column("place").to_numpy()
        if filtered:
            self._kept = Places(places, np.ones(len(places), np.bool_), 0)
        for i, mark in enumerate(hard):
            holds = found.column(f"m{i}").to_numpy()
            self._marks[mark] = Places(places[holds], np.ones(int(holds.sum()), np.bool_), 0)
        for i, name in enumerate(values):
            column = found.column(f"v{i}").combine_chunks().dictionary_encode()
            codes: I32 = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            self.words[name] = column.dictionary.to_pylist()
            self._values[name] = Places(places, codes, -1)

    def select(self, run: Run) -> Run:
        """The events of ``run`` that are meant. Copies nothing when that is all of them."""
        kept = np.ones(0, np.bool_)
        for mask in self._masks(run):
            kept = mask if not len(kept) else kept & mask
        return run if not len(kept) or kept.all() else run.where(kept)

    def _masks(self, run: Run) -> Any:
        if len(run) and (int(run.at.min()) < self.low or int(run.at.max()) >= self.high):
            yield (run.at >= self.low) & (run.at < self.high)
        if self._kept is not None:
            yield _holds(self._kept, run)
        if self._marked_only:
            marked = np.zeros(len(run), np.bool_)
            for holds in self._marks.values():
                marked |= _holds(holds, run)
            yield marked

    def marks(self, run: Run) -> dict[str, Mask]:
        return {mark: _holds(holds, run) for mark, holds in self._marks.items()}

    def values(self, run: Run) -> dict[str, I32]:
        return {name: places.of(run.place) for name, places in self._values.items()}


def _holds(holds: Mask | Places | None, run: Run) -> Mask:
    assert holds is not None
    mask: Mask = holds.of(run.place) if isinstance(holds, Places) else holds[run.name]
    return mask


def _by_name(filters: Sequence[Filter], names: Sequence[str]) -> Mask | None:
    """Which names hold the filters, shape ``(len(names),)``; None when they ask for more than the name."""
    if not all(filter_.field == Field("name") for filter_ in filters):
        return None
    words = pa.array(names, pa.string())
    holds = np.ones(len(names), np.bool_)
    for filter_ in filters:
        holds &= filter_.mask(_Names(words))
    return holds


class _Names:
    """Names as if they were events, for `Filter.mask`."""

    def __init__(self, words: pa.Array) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    def column(self, name: str) -> pa.Array:
        assert name == "name"
        return self._words

    def property(self, name: str, type: type[str | float | int | bool]) -> pa.Array:  # noqa: A002, ARG002
        raise AssertionError(f"{name}: only names are looked at")
