"""The erasures of a host: begun by a tombstone, carried out on a thread of their own, gone on with after a crash."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from analytics_core.erasure.erasing import PLUGIN, RESTING, Erasing, Places
from analytics_core.erasure.receipts import ErasureReceipt, Found, Place, Receipts
from analytics_core.errors import NotFoundError, ParameterError, PluginRunsError
from analytics_core.events import MAX_ID
from analytics_core.events.owners import Bound, Owners
from analytics_core.log.tombstones import Tombstone
from analytics_core.queries.history import History
from analytics_core.queries.reader import Reader

MOST_IDS: Final = 100
"""Of one request."""
IdsOf = Callable[[str, str], Sequence[str]]
"""``(tenant, id) -> ids``: all ids that belong to the same person, the given one among them."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0
_CLOSE_SECONDS: Final = 10.0
_log = structlog.get_logger(__name__)


def only(_: str, id_: str) -> Sequence[str]:
    """The `IdsOf` of who knows of no other ids."""
    return (id_,)


def owners_of(tenant: str, asked: Sequence[str], ids_of: IdsOf) -> Owners:
    """Those who were asked for, with all ids that belong to the same people."""
    linked = dict.fromkeys(each for id_ in asked for each in ids_of(tenant, id_))
    return Owners(tuple(asked), tuple(id_ for id_ in linked if id_ not in asked))


def counted(reader: Reader, owners: Owners) -> dict[str, Any]:
    """``events`` of theirs, and the times of the ``first`` and the ``last``."""
    bound = Bound()
    query = "SELECT count(*) AS events, min(timestamp) AS first, max(timestamp) AS last FROM events WHERE "
    row: dict[str, Any] = reader.sql(query + owners.sql(bound), bound.parameters).to_pylist()[0]
    return row


class Erasures:
    """Safe for use from any thread; `begin` and `look` block. `start` and `close` frame it."""

    def __init__(self, places: Places, receipts: Receipts, history: History, *, ids_of: IdsOf = only) -> None:
        self._places = places
        self._receipts = receipts
        self._history = history
        self._ids_of = ids_of
        self._under_way: dict[str, Erasing] = {}
        self._beginning = threading.Lock()
        self._stopping = threading.Event()
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="erasures", daemon=True)

    def start(self) -> None:
        """Go on with what an earlier process has left."""
        self._thread.start()

    def close(self) -> None:
        """What is under way is broken off, by the closing of the lake if need be; the next start goes on."""
        self._stopping.set()
        self._asked.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_SECONDS)

    def look(self, tenant: str, ids: Iterable[str]) -> Found:
        """What there is of these users. :raises ParameterError: for no ids, too many, or one that can be none."""
        owners = self._owners(tenant, ids)
        with self._history.reader(tenant) as reader:
            return Found(
                owners.ids, **counted(reader, owners), outputs=dict(self._places.state.find(tenant, owners.ids))
            )

    def begin(self, tenant: str, ids: Iterable[str], by: str) -> ErasureReceipt:
        """Erase these users, with all ids that belong to them. When it returns no reader shows an event of theirs that
        was durable before.

        :raises ParameterError: as `look`.
        :raises LogWriteError: when the tombstone could not be made durable.
        """
        owners = self._owners(tenant, ids)
        with self._history.reader(tenant) as reader:
            events = counted(reader, owners)["events"]
        key = secrets.token_hex(8)
        try:
            with self._beginning:
                position = self._places.log.erase(tenant, owners, key)
                receipt = self._made(Tombstone(position, tenant, owners, key, 0), events, by)
                self._receipts.put(receipt)
        finally:  # the tombstone may hold whatever has failed
            self._places.drop_caches(tenant)
            self._places.drop_replays("users were erased meanwhile")
            self._asked.set()
        _log.warning("erasure_begun", id=key, tenant=tenant, by=by, position=position, events=events)
        return receipt

    def view(self, tenant: str, id_: str) -> ErasureReceipt:
        """:raises NotFoundError: for an id that no erasure of the tenant has."""
        receipt = self._receipts.get(tenant, id_)
        if receipt is None:
            raise NotFoundError("erasure", id_)
        return receipt

    def all(self, tenant: str) -> list[ErasureReceipt]:
        """The newest first."""
        return self._receipts.all(tenant)

    def drop_state(self, tenant: str, id_: str, plugin: str, by: str) -> ErasureReceipt:
        """Drop what a plugin that cannot be told has stored of its state: whoever waits for it is then done. Should it
        come back it folds anew all history that is kept.

        :raises NotFoundError: for an erasure that is none, or a plugin that it does not wait for.
        :raises PluginRunsError: for one that might still be told.
        """
        receipt = self.view(tenant, id_)
        untold = [
            entry.place.removeprefix(PLUGIN) for entry in receipt.places if entry.status in ("deferred", "failed")
        ]
        if plugin not in untold:
            raise NotFoundError("plugin that this erasure waits for", plugin, untold)
        state = next((view.state for view in self._places.plugins() if view.name == plugin), None)
        if state is not None and state not in RESTING:
            raise PluginRunsError(plugin, f"is {state}, so it might be told yet; disable it first")
        self._places.state.drop_lane(plugin)
        self._asked.set()
        _log.warning("plugin_state_dropped", plugin=plugin, by=by, erasure=id_)
        return receipt

    def _owners(self, tenant: str, ids: Iterable[str]) -> Owners:
        asked = list(dict.fromkeys(ids))
        if not asked:
            raise ParameterError("userId", "is missing; give userId, anonymousId, or ids with several of either")
        if len(asked) > MOST_IDS:
            raise ParameterError("ids", f"has {len(asked)} entries; at most {MOST_IDS} can be erased at once")
        for id_ in asked:
            if not id_ or len(id_.encode(errors="surrogatepass")) > MAX_ID:
                raise ParameterError("ids", f"{id_[:40]!r} is no id; valid are 1 to {MAX_ID} bytes")
        return owners_of(tenant, asked, self._ids_of)

    def _made(self, tombstone: Tombstone, events: int | None, by: str) -> ErasureReceipt:
        now, tenant = datetime.now(UTC), tombstone.tenant
        told = f"durable at position {tombstone.position}; an event of theirs after it is kept"
        return ErasureReceipt(
            id=tombstone.key,
            tenant=tenant,
            state="running",
            ids=[self._receipts.hashed(tenant, id_) for id_ in tombstone.owners.ids],
            by=by,
            asked_at=now,
            position=tombstone.position,
            events=events,
            places=[
                Place(place="tombstone", status="done", detail=told, at=now),
                Place(place="queries", status="done", detail="every reader of log and lake filters since", at=now),
                *(Place(place=name) for name in ("lake", "caches", "segments", "state")),
            ],
            note="" if events else "no event of these ids was found; all else is looked through nevertheless",
        )

    # --- its own thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            self._asked.clear()
            try:
                changed, left = self._round()
            except Exception as error:  # the state store cannot be written, say: the tombstones hold, and the next try
                _log.exception("erasures_wait", reason=str(error))
                changed, left = False, True
            pause = _FIRST_PAUSE if changed else min(2 * pause, _LONGEST_PAUSE)
            self._asked.wait(pause if left else None)

    def _round(self) -> tuple[bool, bool]:
        """Go on with each erasure; whether anything has changed, and whether any is left."""
        changed = False
        with self._beginning:  # what is in the log has its receipt
            tombstones = self._places.log.tombstones.current()
        for tombstone in tombstones:
            if self._stopping.is_set():
                break
            if tombstone.key not in self._under_way:
                self._under_way[tombstone.key] = self._taken_up(tombstone)
            erasing = self._under_way[tombstone.key]
            before = erasing.receipt
            changed |= erasing.go_on() != before
        left = {tombstone.key for tombstone in self._places.log.tombstones.current()}
        self._under_way = {key: erasing for key, erasing in self._under_way.items() if key in left}
        return changed, bool(left)

    def _taken_up(self, tombstone: Tombstone) -> Erasing:
        receipt = self._receipts.get(tombstone.tenant, tombstone.key)
        if receipt is None:  # its process ended between the two
            receipt = self._made(tombstone, None, "")
            with self._beginning:
                self._receipts.put(receipt)
        return Erasing(self._places, tombstone, receipt, self._receipts.put)
