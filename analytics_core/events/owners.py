"""Whose an event is, where users are to be exported or forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.properties import extract_property

_ALIAS: Final = "alias"
_FORMER: Final = "previousId"


class Owners(Struct, frozen=True):
    """Users by their ids. Theirs is each event that carries one of ``asked`` as user or anonymous id, one whose user id
    is among ``linked``, one without a user id whose anonymous id is, and an ``alias`` whose former id is among either:
    whoever else it was claimed by, and whether or not that held, it names them.

    ``asked`` are those that somebody has named, at least one; ``linked`` those that belong to the same people. What
    another user did on a device that was linked to these stays that user's.
    """

    asked: tuple[str, ...]
    linked: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return (*self.asked, *self.linked)

    def mask(self, rows: pa.RecordBatch, below: int) -> pa.Array:
        """Which rows are events of theirs below position ``below``; booleans, shape ``(n,)``."""
        user, anonymous = rows.column("user_id"), rows.column("anonymous_id")
        theirs = pc.or_(_among(user, self.ids), _among(anonymous, self.asked))
        if self.linked:
            theirs = pc.or_(theirs, pc.and_(pc.is_null(user), _among(anonymous, self.linked)))
        aliases = _among(rows.column("name"), (_ALIAS,))
        if aliases.true_count:
            theirs = pc.or_(theirs, pc.and_(aliases, _among(_former(rows.column("properties"), aliases), self.ids)))
        return pc.and_(theirs, pc.less(rows.column("seq"), below))

    def sql(self, bind: Callable[[Any], str]) -> str:
        """The same without the position, as a condition of DuckDB that is never null; ``bind`` gives the expression
        that stands for a value."""
        kind = f"json_type(properties, '$.{_FORMER}') IN ('VARCHAR', 'BIGINT', 'UBIGINT')"
        former = f"TRY(CASE WHEN {kind} THEN json_extract_string(properties, '$.{_FORMER}') END)"
        parts = [
            _has(bind(list(self.ids)), "user_id"),
            _has(bind(list(self.asked)), "anonymous_id"),
            f"CASE WHEN name = '{_ALIAS}' THEN {_has(bind(list(self.ids)), former)} ELSE false END",
        ]
        if self.linked:
            parts.append(f"(user_id IS NULL AND {_has(bind(list(self.linked)), 'anonymous_id')})")
        return f"({' OR '.join(parts)})"


def _former(properties: pa.Array, aliases: pa.Array) -> pa.Array:
    """The former ids of the rows that are ``aliases``, null in the others."""
    theirs = pc.if_else(aliases, properties, pa.scalar(None, properties.type))
    whole = extract_property(theirs, _FORMER, int).cast(pa.string())
    return pc.coalesce(extract_property(theirs, _FORMER, str), whole)


def _among(column: pa.Array, ids: Sequence[str]) -> pa.Array:
    return pc.is_in(column, value_set=pa.array(ids, pa.string()))


def _has(ids: str, column: str) -> str:
    return f"coalesce(list_contains({ids}, {column}), false)"


class Bound:
    """A ``bind`` for `Owners.sql` in a statement with ``$name`` parameters, which it gathers."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def __call__(self, value: Any) -> str:
        name = f"owners{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"
