"""Which events of a question in user order are meant: by their names and values, or by SQL where those do not tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core.events import moment
from analytics_core.lake.user_order import I32, I64, Mask, Run
from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.filters import Field, Filter, conjunction
from analytics_core.properties import extract_property

Columns = Callable[[Field], ValueColumn | None]
"""Gives the column of a field up to the snapshot's position, or None when it has to be asked of SQL."""


def no_columns(field: Field) -> None:
    """`Columns` where none are kept."""


PLACE: Final = "(CAST(partition AS BIGINT) << 48 | seq)"
"""SQL: the `Run.place` of an event."""
_DENSE: Final = 8
"""A table over all log positions is made when at most so many are in it for each that has a value."""
_FEW: Final = 8
"""So many comparisons take less time than one look-up."""
NAME: Final = Field("name")


class Rows(Protocol):
    """`queries.snapshot.Snapshot`, as far as it is needed: SQL over ``ever``, all events of the tenant."""

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table: ...


# --- tests of events -------------------------------------------------------------------------------------------------


class Test(Protocol):
    """A condition on events by their names (codes) and places, shape ``(n,)`` each."""

    def of(self, name: I32, place: I64) -> Mask: ...


class Names:
    """Holds for some names. ``holds``: shape ``(names,)``."""

    def __init__(self, holds: Mask) -> None:
        self.holds = holds
        self._few = np.flatnonzero(holds).tolist()  # a whole number of Python is compared in the type of the codes

    def of(self, name: I32, place: I64) -> Mask:  # noqa: ARG002
        if len(self._few) > _FEW:
            return self.holds[name]
        found = np.zeros(len(name), np.bool_)
        for code in self._few:
            found |= name == code
        return found


class Values:
    """Holds for some values of a column. ``holds``: shape ``(words + 1,)``, first of no value."""

    def __init__(self, column: ValueColumn, holds: Mask) -> None:
        self._column = column
        self._holds = holds

    def of(self, name: I32, place: I64) -> Mask:  # noqa: ARG002
        return self._holds[self._column.at(place)]


class Places:
    """A value for some log positions and ``default`` for all others; as a test, where it is true.

    ``places`` (n,) in any order, none twice; ``values`` (n,).
    """

    def __init__(self, places: I64, values: npt.NDArray[Any], default: int) -> None:
        self._default = values.dtype.type(default)
        self._low = int(places.min()) if len(places) else 0
        span = int(places.max()) - self._low + 1 if len(places) else 0
        self._dense = span <= _DENSE * len(places)
        if self._dense:
            self._values = np.full(span + 2, default, values.dtype)  # the first and the last stand for all outside
            self._values[places - self._low + 1] = values
        else:
            by = np.argsort(places)
            self._places, self._values = places[by], values[by]

    def at(self, places: I64) -> npt.NDArray[Any]:
        """The value of each position, shape of ``places``."""
        if self._dense:
            return self._values[np.clip(places - (self._low - 1), 0, len(self._values) - 1)]
        found = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        return np.where(self._places[found] == places, self._values[found], self._default)

    def of(self, name: I32, place: I64) -> Mask:  # noqa: ARG002
        mask: Mask = self.at(place)
        return mask


def _all(tests: Sequence[Test], name: I32, place: I64) -> Mask:
    """Where every test holds; each looks only at what those before it have left."""
    if not tests:
        return np.ones(len(name), np.bool_)
    mask = tests[0].of(name, place)
    for test in tests[1:]:
        left = np.flatnonzero(mask)
        mask[left] = test.of(name[left], place[left])
    return mask


# --- what a question asks --------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What of each event is asked: ``filters`` that it must hold, ``marks`` by name, the text of ``values``; only with
    ``low <= timestamp < high`` (microseconds), and ``marked_only`` only those that have a mark. ``columns``: which of
    `Run` are wanted beside the time, and ``first_at``."""

    filters: Sequence[Filter]
    marks: Mapping[str, Sequence[Filter]]
    values: Mapping[str, Field]
    low: int
    high: int
    marked_only: bool
    columns: Collection[str] = ()


class Meant:
    """Says of a run's events which are meant. ``names`` are the words of the run's codes.

    :raises ParameterError: for a value that cannot be asked for.
    """

    def __init__(self, rows: Rows, names: Sequence[str], columns: Columns, asked: Asked) -> None:
        self._asked = asked
        self.words: dict[str, Sequence[str]] = {}
        self._tests = Tests(names, columns)
        self._kept = self._tests.of(asked.filters)
        self._marks = {mark: self._tests.of(filters) for mark, filters in asked.marks.items()}
        self._values: dict[str, Callable[[I64], I32]] = {}
        missing = {name: field for name, field in asked.values.items() if not self._know(name, columns(field))}
        if missing or self._kept is None or None in self._marks.values():
            self._ask(rows, missing)
        self.first_at = "first_at" in asked.columns
        """Whether it is asked when a visitor came first."""
        self._columns = {"at", *asked.columns, *(("name",) if self._marks else ())}
        if self._values or any(_by_name_alone(tests) is None for tests in self._marks.values()):
            self._columns.add("place")

    def _know(self, name: str, column: ValueColumn | None) -> bool:
        if column is None:
            return False
        codes, self.words[name] = texts(column)
        self._values[name] = lambda places: codes.take(column.at(places))
        return True

    def _ask(self, rows: Rows, values: Mapping[str, Field]) -> None:
        """One query for all that is not at hand."""
        low, high, marks = self._asked.low, self._asked.high, self._asked.marks
        bound: dict[str, Any] = {"low": moment(low), "high": moment(high)}

        def bind(value: Any) -> str:
            bound[f"p{len(bound)}"] = value
            return f"$p{len(bound) - 1}"

        hard = [mark for mark, tests in self._marks.items() if tests is None]
        columns = [f"coalesce({conjunction(marks[mark], bind)}, false) AS m{i}" for i, mark in enumerate(hard)]
        columns += [f"{field.text(bind)} AS v{i}" for i, field in enumerate(values.values())]
        where = f"timestamp >= $low AND timestamp < $high AND {conjunction(self._asked.filters, bind)}"
        if self._kept is not None and (self._asked.marked_only or not values):
            wanted = marks if values else hard
            where += f" AND ({' OR '.join(f'({conjunction(marks[mark], bind)})' for mark in wanted)})"
        found = rows.ever(f"SELECT {', '.join([f'{PLACE} AS place', *columns])} FROM ever WHERE {where}", bound)
        places = found.column("place").to_numpy()
        if self._kept is None:
            self._kept = [_true(places)]
        for i, mark in enumerate(hard):
            self._marks[mark] = [_true(places[found.column(f"m{i}").to_numpy()])]
        for i, name in enumerate(values):
            column = found.column(f"v{i}").combine_chunks().dictionary_encode()
            codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            self.words[name] = column.dictionary.to_pylist()
            self._values[name] = Places(places, codes, -1).at

    def select(self, run: Run) -> Run:
        """The events of ``run`` that are meant, with the columns that are needed. Copies nothing when all are meant."""
        kept = np.ones(0, np.bool_)
        for mask in self._masks(run):
            kept = kept & mask if len(kept) else mask
        needed = run.only(self._columns)
        return needed if not len(kept) or kept.all() else needed.where(kept)

    def _masks(self, run: Run) -> Iterator[Mask]:
        low, high = self._asked.low, self._asked.high
        if len(run) and (int(run.at[run.start].min()) < low or int(run.at[run.end - 1].max()) >= high):
            yield (run.at >= low) & (run.at < high)
        if self._kept:
            yield _all(self._kept, run.name, run.place)
        if self._asked.marked_only:
            yield self._marked(run)

    def _marked(self, run: Run) -> Mask:
        named = [test.holds for tests in self._marks.values() if (test := _by_name_alone(tests)) is not None]
        marked = Names(np.logical_or.reduce(named)).of(run.name, run.place) if named else np.zeros(len(run), np.bool_)
        for tests in self._marks.values():
            if _by_name_alone(tests) is None:
                marked |= _all(tests or (), run.name, run.place)
        return marked

    def marks(self, run: Run) -> dict[str, Mask]:
        return {mark: _all(tests or (), run.name, run.place) for mark, tests in self._marks.items()}

    def values(self, run: Run) -> dict[str, I32]:
        return {name: self._values[name](run.place) for name in self._asked.values}


def _by_name_alone(tests: Sequence[Test] | None) -> Names | None:
    return tests[0] if tests and len(tests) == 1 and isinstance(tests[0], Names) else None


def _true(places: I64) -> Places:
    return Places(places, np.ones(len(places), np.bool_), 0)


def texts(column: ValueColumn) -> tuple[I32, list[str]]:
    """The texts of a column's values, none twice, as ``5`` and ``"5"`` have one; and which of them each code has, shape
    ``(words + 1,)``, -1 for no value."""
    numbers: dict[str, int] = {}
    codes = [-1, *(numbers.setdefault(shown(word), len(numbers)) for word in tuple(column.words))]
    return np.array(codes, np.int32), list(numbers)


def shown(word: str) -> str:
    """A JSON text as `Field.text` writes it: a string without its quotes."""
    return str(msgspec.json.decode(word)) if word.startswith('"') else word


class Tests:
    """Makes tests of filters, where names and columns tell them."""

    def __init__(self, names: Sequence[str], columns: Columns) -> None:
        self._names = _Words(pa.array(names, pa.string()))
        self._columns = columns

    def of(self, filters: Sequence[Filter]) -> list[Test] | None:
        """The tests that are all ``filters``, by names first; None when something else has to be asked."""
        by_name = [filter_ for filter_ in filters if filter_.field == NAME]
        tests: list[Test] = []
        if by_name:
            tests.append(Names(np.logical_and.reduce([filter_.mask(self._names) for filter_ in by_name])))
        for filter_ in filters:
            if filter_.field == NAME:
                continue
            column = self._columns(filter_.field)
            if column is None:
                return None
            tests.append(Values(column, filter_.mask(_documents(filter_.field, column.words))))
        return tests


class _Words:
    """Names, or JSON objects, as if they were events, for `Filter.mask`."""

    def __init__(self, words: pa.Array) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    def column(self, name: str) -> pa.Array:  # noqa: ARG002
        return self._words

    def property(self, name: str, type: type[str | float | int | bool]) -> pa.Array:  # noqa: A002
        return extract_property(self._words, name, type)


def _documents(field: Field, words: Sequence[str]) -> _Words:
    """An object that lacks the field, then one for each of its values."""
    keys = field.path.split(".")
    before = "".join(f"{{{msgspec.json.encode(key).decode()}:" for key in keys)
    after = "}" * len(keys)
    return _Words(pa.array(["{}", *(f"{before}{word}{after}" for word in words)], pa.string()))
