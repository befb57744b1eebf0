"""What events say about who is who, as columns: the rows that `Identity` is a fold of."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.lake.user_order import I64, U64, Mask
from analytics_core.lake.user_order import visitor_keys as visitor_keys
from analytics_core.properties import extract_property

NAMES: Final = ("identify", "alias", "unmerge")
"""Events that link ids, or part them again. No other event does."""
IDENTIFY, ALIAS, UNMERGE = range(3)
OPERATOR: Final = "api:operator"
"""The source of what came through the operator's own door. No plugin can have this name, and no client can set it."""
COLUMNS: Final = ("seq", "name", "user_id", "anonymous_id", "received_at", "source", "properties")
"""What `read_links` needs of `events.SCHEMA`."""
NEVER: Final = np.iinfo(np.int64).max


def find(ordered: U64, keys: U64) -> tuple[I64, Mask]:
    """Where each of ``keys`` is in ``ordered`` (ascending), and whether it is there; shape ``(len(keys),)`` each."""
    if not len(ordered):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    at = np.searchsorted(ordered, keys)
    at[at == len(ordered)] = 0
    return at, ordered[at] == keys


def distinct(keys: U64) -> U64:
    """Each key once, ascending; `numpy.unique` takes several times as long."""
    ordered = np.sort(keys)
    first: Mask = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    return ordered[first]


class Links(NamedTuple):
    """Link events as columns of shape ``(n,)``. ``former`` is or becomes a former id of the user ``into``.

    ``undoes`` is the merge (its ``seq``) that an unmerge takes back, else -1. ``at`` is the receipt in microseconds.
    """

    seq: I64
    at: I64
    kind: npt.NDArray[np.int8]
    operator: Mask
    forced: Mask
    undoes: I64
    former: U64
    into: U64
    former_id: pa.StringArray
    into_id: pa.StringArray

    def take(self, chosen: Mask | I64) -> Links:
        """Some of the rows, in the given order."""
        at = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        if len(at) == len(self.seq) and chosen.dtype == np.bool_:
            return self
        arrow = pa.array(at)
        return Links._make([*(column[at] for column in self[:8]), *(column.take(arrow) for column in self[8:])])

    def followed_by(self, *others: Links) -> Links:
        rows = [rows for rows in (self, *others) if len(rows.seq)]
        if len(rows) < 2:
            return rows[0] if rows else self
        columns = list(zip(*rows, strict=True))
        return Links._make([*map(np.concatenate, columns[:8]), *map(pa.concat_arrays, columns[8:])])


def read_links(rows: pa.Table) -> Links:
    """The link events among ``rows`` (`COLUMNS`), ordered by ``seq``. What names fewer than two ids is no link.

    ``identify`` links its ``anonymousId`` to its ``userId``; ``alias`` its ``properties.previousId``, or without it its
    ``anonymousId``. ``force`` and ``unmerge`` count from the `OPERATOR` alone.
    """
    rows = rows.filter(pc.is_in(column(rows, "name"), pa.array(NAMES)))
    kind = pc.index_in(column(rows, "name"), pa.array(NAMES)).to_numpy(zero_copy_only=False).astype(np.int8)
    properties = column(rows, "properties")
    user, anonymous = _id(column(rows, "user_id")), _id(column(rows, "anonymous_id"))
    previous = pc.coalesce(
        _id(extract_property(properties, "previousId", str)),
        extract_property(properties, "previousId", int).cast(pa.string()),
        anonymous,
    )
    former = pc.if_else(pa.array(kind == ALIAS), previous, anonymous)
    operator = _true(pc.equal(column(rows, "source"), OPERATOR))
    undoes = _whole(extract_property(properties, "mergeId", int).fill_null(-1))
    paired = _true(pc.not_equal(user, former))  # null when one of them is missing
    unmerge = kind == UNMERGE
    links = Links(
        seq=_whole(column(rows, "seq")),
        at=_whole(column(rows, "received_at").cast(pa.timestamp("us", "UTC")).view(pa.int64())),
        kind=kind,
        operator=operator,
        forced=operator & (kind == ALIAS) & _true(extract_property(properties, "force", bool)),
        undoes=np.where(unmerge, undoes, -1),
        former=np.where(unmerge, np.uint64(0), visitor_keys(former)),
        into=np.where(unmerge, np.uint64(0), visitor_keys(user)),
        former_id=former,
        into_id=user,
    ).take(np.where(unmerge, operator & (undoes >= 0), paired))
    return links.take(np.argsort(links.seq, kind="stable"))


def column(rows: pa.Table, name: str) -> pa.Array:
    """One column in one piece, words as plain strings."""
    found = rows.column(name).combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def _id(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _true(column: pa.Array) -> Mask:
    mask: Mask = column.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


def _whole(column: pa.Array) -> I64:
    values: I64 = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


class Users(NamedTuple):
    """The known users: each id that any event has had as its ``userId``, and the first such event.

    ``keys``: ascending; ``first``: the log position, shape ``(n,)`` each.
    """

    keys: U64
    first: I64

    @classmethod
    def of(cls, ids: pa.Array, seq: I64) -> Users:
        """``ids`` (no null among them) as the events at ``seq`` have them, in any order, repeated or not."""
        keys = visitor_keys(ids)
        order = np.lexsort((seq, keys))
        keys, seq = keys[order], seq[order]
        begins = np.ones(len(keys), np.bool_)
        begins[1:] = keys[1:] != keys[:-1]
        return cls(keys[begins], seq[begins])

    def joined(self, later: Users) -> Users:
        """Also those of ``later`` events."""
        _, known = find(self.keys, later.keys)
        if known.all():
            return self
        keys, first = later.keys[~known], later.first[~known]
        at = np.searchsorted(self.keys, keys)
        return Users(np.insert(self.keys, at, keys), np.insert(self.first, at, first))

    def first_of(self, keys: U64) -> I64:
        """The first event of each, `NEVER` for those that are not known."""
        at, known = find(self.keys, keys)
        return np.where(known, self.first[at] if len(self.first) else NEVER, NEVER)


def no_links() -> Links:
    none = np.empty(0, np.int64)
    empty = pa.array([], pa.string())
    flags, keys = none.astype(np.bool_), none.astype(np.uint64)
    return Links(none, none, none.astype(np.int8), flags, flags, none, keys, keys, empty, empty)


def no_users() -> Users:
    return Users(np.empty(0, np.uint64), np.empty(0, np.int64))
