"""Combinations of labels as numbers, from the codes of columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final, NamedTuple

import numpy as np

from analytics_core.lake.user_order import I64
from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.filters import Field
from analytics_core.queries.marks import NAME, Columns, shown
from analytics_core.queries.user_order import Events

MOST: Final = 1 << 22
"""Combinations that are counted one by one."""


class _Label(NamedTuple):
    """One label: ``texts`` are its values, ``number`` (words + 1,) which of them each code has; by name without a
    ``column``."""

    texts: list[str]
    number: I64
    column: ValueColumn | None


class Labels:
    """The combinations of some labels, numbered from 0. Without labels there is one."""

    def __init__(self, labels: Sequence[_Label]) -> None:
        self._labels = labels
        self.none = not labels
        self.combinations = prod(len(label.texts) for label in labels)

    @classmethod
    def of(cls, fields: Sequence[Field], columns: Columns, names: Sequence[str]) -> Labels | None:
        """Of the values of ``fields``, as `Field.text` writes them, ``""`` for none; ``names`` are the words of
        their codes. None when that has to be asked of SQL, or there are too many."""
        labels = []
        for field in fields:
            column = columns(field)
            if field == NAME:
                labels.append(_Label(list(names), np.arange(len(names)), None))
            elif column is not None:
                numbers: dict[str, int] = {"": 0}
                number = [0, *(numbers.setdefault(shown(word), len(numbers)) for word in tuple(column.words))]
                labels.append(_Label(list(numbers), np.array(number), column))
            else:
                return None
        made = cls(labels)
        return made if made.combinations <= MOST else None

    def numbers(self, events: Events, chosen: I64 | slice) -> I64:
        """The combination of each event of ``events`` that is chosen."""
        place = events.place[chosen]
        found = np.zeros(len(place), np.int64)
        for label in self._labels:
            codes = events.name[chosen] if label.column is None else label.column.at(place)
            found *= len(label.texts)
            found += label.number[codes]
        return found

    def texts(self, combination: int) -> tuple[str, ...]:
        """The values of one combination."""
        found = []
        for label in reversed(self._labels):
            combination, number = divmod(combination, len(label.texts))
            found.append(label.texts[number])
        return tuple(reversed(found))
