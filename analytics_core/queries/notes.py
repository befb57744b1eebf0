"""What is said beside an answer of the names in its question that nobody has sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from analytics_core.errors import near
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.projection import Bound

Ask = Callable[[str, Mapping[str, Any]], pa.Table]
LOOKED_AT: Final = 20_000
"""Events in whose JSON a key is looked for."""
_SHOWN_NAMES: Final = 20
_NAME: Final = Field("name")


def names_in(filter_: Filter) -> list[str]:
    """The event names that a filter asks for."""
    if filter_.field != _NAME or filter_.op not in ("=", "in"):
        return []
    return [name for name in (filter_.value if filter_.op == "in" else [filter_.value]) if name is not None]


def unknown_names(filters: Sequence[Filter], known: Sequence[str]) -> Iterator[str]:
    """A sentence for each event name of ``filters`` that is not among ``known``, most frequent first."""
    listed = set(known)
    for name in dict.fromkeys(name for filter_ in filters for name in names_in(filter_)):
        if name not in listed:
            yield f"no event is named {name[:64]!r}{_near(name, known)}"


def unknown_path(ask: Ask, field: Field, view: str = "events") -> Iterator[str]:
    """A sentence when none of some events of a view has such a key. ``ask`` runs one query over it."""
    at: list[str] = []
    for key in field.path.split("."):
        known = _keys(ask, Field(field.column, ".".join(at)), view)
        at.append(key)
        if key not in known:
            name = ".".join([field.column, *at])
            yield f"no {name[:200]!r} in the {LOOKED_AT:,} events that were looked at{_near(key, known)}"
            return


def _keys(ask: Ask, field: Field, view: str) -> list[str]:
    """The keys of the JSON objects at ``field``, most frequent first, of some of the events."""
    bound = Bound()
    found = ask(
        f"SELECT key FROM (SELECT unnest({field.keys(bound)}) AS key FROM (SELECT * FROM {view} LIMIT {LOOKED_AT})) "
        "GROUP BY key ORDER BY count(*) DESC, key LIMIT 1000",
        bound,
    )
    return [str(key) for key in found.column("key").to_pylist()]


def _near(word: str, known: Sequence[str]) -> str:
    hint = near(word, known)
    return hint if "did you mean" in hint or len(known) <= _SHOWN_NAMES else near(word, known[:_SHOWN_NAMES]) + ", ..."
