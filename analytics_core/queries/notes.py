"""What is said beside an answer of what in its question nobody has sent: names, and values of another type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from analytics_core.errors import near
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.projection import Bound

Ask = Callable[[str, Mapping[str, Any]], pa.Table]
LOOKED_AT: Final = 20_000
"""Events in whose JSON a key is looked for."""
_SHOWN_NAMES: Final = 20
_NAME: Final = Field("name")
_HELD: Final = {
    "VARCHAR": "text",
    **dict.fromkeys(("BIGINT", "UBIGINT", "HUGEINT", "DOUBLE"), "number"),
    "BOOLEAN": "truth value",
    "OBJECT": "object",
    "ARRAY": "list",
}
"""What DuckDB says of a JSON value, and how it is called here."""


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
        looked, known = _keys(ask, Field(field.column, ".".join(at)), view)
        within = ".".join([field.column, *at])
        if not looked:
            yield "no event has come yet"
            return
        if key not in known:
            name = f"{within}.{key}"
            hint = _near(name, [f"{within}.{each}" for each in known])
            yield f"no {name[:200]!r} in the {looked:,} events that were looked at{hint}"
            return
        at.append(key)


def unlike(ask: Ask, filter_: Filter, view: str = "events") -> Iterator[str]:
    """A sentence when a filter's value is of a type that none of some events holds there: ``"10"`` is no number."""
    if not filter_.field.path or filter_.op in ("!=", "exists"):
        return
    values = filter_.value if filter_.op == "in" else (filter_.value,)
    asked = {_kind(value): value for value in values if value is not None}
    bound = Bound()
    found = ask(
        f"SELECT {filter_.field.json_type(bound)} AS type FROM (SELECT * FROM {view} LIMIT {LOOKED_AT}) GROUP BY type "
        "ORDER BY count(*) DESC, type",
        bound,
    )
    held = dict.fromkeys(_HELD[kind] for kind in found.column("type").to_pylist() if kind in _HELD)
    if held and asked and not held.keys() & asked.keys():
        kind, value = next(iter(asked.items()))
        told = msgspec.json.encode(value).decode()[:64]
        yield f"{filter_.field.name[:200]!r} holds {' and '.join(f'{each}s' for each in held)}, and {told} is a {kind}"


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "truth value" if isinstance(value, bool) else "number"


def _keys(ask: Ask, field: Field, view: str) -> tuple[int, list[str]]:
    """How many events were looked at, and the keys of their JSON objects at ``field``, most frequent first."""
    bound = Bound()
    found = ask(
        f"WITH looked AS MATERIALIZED (SELECT {field.keys(bound)} AS keys FROM {view} LIMIT {LOOKED_AT}) "
        "SELECT count(*) AS n, NULL AS key FROM looked UNION ALL "
        "(SELECT count(*) AS n, key FROM (SELECT unnest(keys) AS key FROM looked) GROUP BY key ORDER BY n DESC, key "
        "LIMIT 1000)",
        bound,
    )
    counts = dict(zip(found.column("key").to_pylist(), found.column("n").to_pylist(), strict=True))
    looked = counts.pop(None)
    return int(looked), sorted(counts, key=lambda key: (-counts[key], key))


def _near(word: str, known: Sequence[str]) -> str:
    hint = near(word, known)
    return hint if "did you mean" in hint or len(known) <= _SHOWN_NAMES else near(word, known[:_SHOWN_NAMES]) + ", ..."
