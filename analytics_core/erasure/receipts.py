"""Receipts of erasures: what was done in each place, without saying whose events they were."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from msgspec import Struct

from analytics_core.state import StateStore

Status = Literal["waiting", "done", "rebuild", "deferred", "failed"]
"""``rebuild``: a plugin without the hook, or one that is gone, keeps what it made until it is rebuilt. ``deferred``: it
does not run, and is told before its next event. ``failed``: as that, since it fails."""
_OWNER: Final = "_system"
_KIND: Final = "erasure"
_LISTS: Final = "erasures"


class Found(Struct, frozen=True):
    """What would be erased: ``ids`` with those that belong to them, how many ``events``, from when to when, and how
    many rows of the state that name one of the ids, by what they are."""

    ids: Sequence[str]
    events: int
    first: datetime | None = None
    last: datetime | None = None
    outputs: dict[str, int] = {}


class Place(Struct, frozen=True, kw_only=True):
    """What became of an erasure in one place, and when. ``counts`` are of events, rows or files, by name."""

    place: str
    status: Status = "waiting"
    detail: str = ""
    counts: dict[str, int] = {}
    at: datetime | None = None


class ErasureReceipt(Struct, frozen=True, kw_only=True):
    """One erasure. ``ids`` are keyed hashes of what was erased (`Receipts.hashed`); ``events`` how many were found
    before, None when nobody had counted; ``position`` that of the tombstone in the log: later events are kept.

    ``state`` is ``failed`` while all is done that can be but a plugin that fails keeps its state.
    """

    id: str
    tenant: str
    state: Literal["running", "done", "failed"]
    ids: Sequence[str]
    by: str
    asked_at: datetime
    position: int
    events: int | None
    places: list[Place]
    finished_at: datetime | None = None
    note: str = ""

    def at(self, place: str) -> Place:
        """The entry of a place; one that waits when there is none yet."""
        return next((entry for entry in self.places if entry.place == place), Place(place=place))

    def having(self, entry: Place) -> ErasureReceipt:
        """The same with another entry for its place."""
        names = [held.place for held in self.places]
        if entry.place not in names:
            return msgspec.structs.replace(self, places=[*self.places, entry])
        places = [entry if held.place == entry.place else held for held in self.places]
        return msgspec.structs.replace(self, places=places)


_receipt: Final = msgspec.json.Decoder(ErasureReceipt)
_list: Final = msgspec.json.Decoder(list[str])


class Receipts:
    """The receipts of all tenants, as documents of the machinery, which no retention drops. One thread writes.

    ``secret`` keys the hashes: without it nobody can try ids until one fits.
    """

    def __init__(self, state: StateStore, secret: bytes) -> None:
        self._state = state
        self._secret = secret

    def hashed(self, tenant: str, id_: str) -> str:
        """What stands for an id in a receipt: equal for equal ids of a tenant."""
        return blake2b(f"{tenant}\0{id_}".encode(), key=self._secret, digest_size=16).hexdigest()

    def put(self, receipt: ErasureReceipt) -> None:
        """:raises StorageError: when it cannot be written."""
        self._state.document(_OWNER, _KIND, f"{receipt.tenant}/{receipt.id}", msgspec.json.encode(receipt))
        known = self._known(receipt.tenant)
        if receipt.id not in known:
            self._state.document(_OWNER, _LISTS, receipt.tenant, msgspec.json.encode([*known, receipt.id]))

    def get(self, tenant: str, id_: str) -> ErasureReceipt | None:
        body = self._state.document(_OWNER, _KIND, f"{tenant}/{id_}")
        return None if body is None else _receipt.decode(body)

    def all(self, tenant: str) -> list[ErasureReceipt]:
        """The newest first."""
        found = (self.get(tenant, id_) for id_ in reversed(self._known(tenant)))
        return [receipt for receipt in found if receipt is not None]

    def _known(self, tenant: str) -> list[str]:
        body = self._state.document(_OWNER, _LISTS, tenant)
        return [] if body is None else _list.decode(body)
