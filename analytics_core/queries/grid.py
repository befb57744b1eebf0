"""What one pass over the events gives of several metrics, whichever way it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core.metrics.definition import Definition

F64 = npt.NDArray[np.float64]

MAX_SERIES: Final = 100
"""Label combinations that one answer shows per metric: those with the most events."""


class Grid(NamedTuple):
    """The figures of each definition by group and bucket. ``groups``: the labels' values of each, ``()`` alone without
    labels. Of each definition, in their order: ``values``, shape ``(groups, buckets)``, and ``whole``, that of the
    whole range, shape ``(groups,)``; `Definition.empty` or NaN where there is nothing."""

    groups: list[tuple[str, ...]]
    values: list[F64]
    whole: list[F64]

    @classmethod
    def empty(cls, definitions: Sequence[Definition], groups: list[tuple[str, ...]], buckets: int) -> Grid:
        """Without any event."""
        nothing = [np.nan if definition.empty is None else definition.empty for definition in definitions]
        values = [np.full((len(groups), buckets), each) for each in nothing]
        return cls(groups, values, [np.full(len(groups), each) for each in nothing])
