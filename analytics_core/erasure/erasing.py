"""One erasure under way: what has to be done in each place, in the order in which one depends on another.

    tombstone ─► plugins are told ─► state
            └──► lake ─► caches, segments

Everything may be broken off at any point and done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from analytics_core.erasure.receipts import ErasureReceipt, Place, Status
from analytics_core.errors import AnalyticsError
from analytics_core.events.owners import Owners
from analytics_core.host.views import PluginView
from analytics_core.lake import EventStore
from analytics_core.lanes import LaneView
from analytics_core.log.tombstones import Tombstone, Tombstones
from analytics_core.state.erasing import StateEraser

PLUGIN: Final = "plugin:"
RESTING: Final = frozenset({"invalid", "incompatible", "blocked", "disabled", "unresolved"})
"""States of a plugin whose lane is over, and does not begin again by itself."""
_FAILING: Final = frozenset({"load_error", "start_error", "quarantined"})
_PATIENCE: Final = timedelta(seconds=5)
_IDS_FILES: Final = "the .ids files hold hashes of event ids alone, so that no erased event is taken a second time"
_log = structlog.get_logger(__name__)


class Log(Protocol):
    """`log.segments.SegmentLog`, as far as an erasure needs it."""

    tombstones: Tombstones

    @property
    def first(self) -> int: ...

    def erase(self, tenant: str, owners: Owners, key: str) -> int: ...


class Places(NamedTuple):
    """Where something of a user may be. ``lanes`` are those that can read on in no lake: they are waited for some
    seconds. ``flush`` brings the log's events into the lake; ``drop_caches`` forgets what was worked out of a tenant's
    events, which questions may work out again that are ``earlier`` than a position and still open; ``drop_replays``
    drops rebuilt outputs that nobody has switched to."""

    log: Log
    lake: EventStore
    state: StateEraser
    plugins: Callable[[], Sequence[PluginView]]
    lanes: Callable[[], Sequence[LaneView]]
    flush: Callable[[], int]
    drop_caches: Callable[[str], None]
    earlier: Callable[[str, int], int]
    drop_replays: Callable[[str], object]


class Erasing:
    """``save`` is told the receipt whenever it has changed. Used by one thread."""

    def __init__(
        self, places: Places, tombstone: Tombstone, receipt: ErasureReceipt, save: Callable[[ErasureReceipt], None]
    ) -> None:
        self._places = places
        self._tombstone = tombstone
        self._save = save
        self.receipt = receipt

    def go_on(self) -> ErasureReceipt:
        """Do what can be done now; the receipt then."""
        steps = {"lake": self._lake, "caches": self._caches, "state": self._state, "segments": self._segments}
        if not self._try("state", self._tell_plugins):
            del steps["state"]
        for place, step in steps.items():
            if self.receipt.at(place).status != "done":
                self._try(place, step)
        self._settle()
        return self.receipt

    def _try(self, place: str, step: Callable[[], None]) -> bool:
        """What fails is tried again with the next round; the receipt says why it waits."""
        try:
            step()
        except Exception as error:
            known = isinstance(error, AnalyticsError | OSError)
            (_log.warning if known else _log.exception)("erasure_waits", place=place, reason=str(error))
            self._note(place, "waiting", str(error) if known else f"{type(error).__name__}: {error}")
            return False
        return True

    def _note(self, place: str, status: Status, detail: str = "", **counts: int) -> None:
        held = self.receipt.at(place)
        at = datetime.now(UTC) if status != "waiting" else None
        entry = Place(place=place, status=status, detail=detail, counts=counts or held.counts, at=at)
        if msgspec.structs.replace(entry, at=held.at) != held:
            self._take(self.receipt.having(entry))

    def _take(self, receipt: ErasureReceipt) -> None:
        if receipt != self.receipt:
            self._save(receipt)
            self.receipt = receipt

    # --- the places --------------------------------------------------------------------------------------------------

    def _tell_plugins(self) -> None:
        """Lanes are told by the tombstone; here is looked how far they are. What a plugin that comes late had stored
        until then is dropped once more."""
        told = self._told()
        positions, views = self._places.state.positions(), {view.name: view for view in self._places.plugins()}
        for name in sorted({*positions, *views}):
            place, view, position = f"{PLUGIN}{name}", views.get(name), positions.get(name, 0)
            if view is None and position > self._tombstone.position and place in told:
                continue  # what was said of it holds, while its hooks could be seen
            self._note(place, *_of_plugin(view, position, self._tombstone.position))
        if self._told() != told and self.receipt.at("state").status == "done":
            self._note("state", "waiting", "a plugin has been told only now")

    def _told(self) -> set[str]:
        return {entry.place for entry in self._of_plugins() if entry.status in ("done", "rebuild")}

    def _of_plugins(self) -> list[Place]:
        return [entry for entry in self.receipt.places if entry.place.startswith(PLUGIN)]

    def _lake(self) -> None:
        """Only once the store writer is past the tombstone: what it had in its hands is then in the lake."""
        tombstone, lake = self._tombstone, self._places.lake
        behind = [lane.name for lane in self._places.lanes() if lane.position <= tombstone.position]
        if behind and datetime.now(UTC) - self.receipt.asked_at < _PATIENCE:
            self._note("lake", "waiting", f"until {' and '.join(behind)} has read the log")
            return
        if lake.position <= tombstone.position and self._places.flush() <= tombstone.position:
            self._note("lake", "waiting", "the store writer has not come to the tombstone yet")
            return
        swept = lake.erase(tombstone.tenant, tombstone.owners, tombstone.position)
        done = {"events": swept.events, "files_rewritten": swept.files, "files_deleted": swept.deleted}
        counts = Counter(self.receipt.at("lake").counts)
        counts.update(done)
        if swept.leased:
            self._note("lake", "waiting", f"{swept.leased} replaced files are still read by questions", **counts)
            return
        self._places.log.tombstones.sweep(tombstone.position)
        self._note("lake", "done", "rewritten without them; no earlier version can be read any more", **counts)

    def _caches(self) -> None:
        if self.receipt.at("lake").status != "done":
            return
        tombstone = self._tombstone
        if earlier := self._places.earlier(tombstone.tenant, tombstone.position):
            self._note("caches", "waiting", f"until {earlier} questions have ended that began earlier")
            return
        self._places.drop_caches(tombstone.tenant)
        self._note("caches", "done", "dropped; questions make them anew")

    def _state(self) -> None:
        if any(entry.status == "waiting" for entry in self._of_plugins()):
            self._note("state", "waiting", "until the plugins are told, which may store until then")
            return
        dropped = self._places.state.erase(self._tombstone.tenant, self._tombstone.owners.ids)
        counts = Counter(self.receipt.at("state").counts)
        counts.update(dropped)
        if not self._places.state.settle():
            self._note(
                "state", "waiting", "until no reader needs the store's journal, which has the rows still", **counts
            )
            return
        self._note("state", "done", "rows that name them are dropped; sums and sketches name nobody", **counts)

    def _segments(self) -> None:
        if self.receipt.at("lake").status != "done":
            return
        if self._places.log.first > self._tombstone.position:
            self._note("segments", "done", f"all up to the tombstone are deleted; {_IDS_FILES}")
        else:
            self._note("segments", "waiting", "until the ids of their events are in their files")

    def _settle(self) -> None:
        """Done is done; what a plugin still has to be told, the tombstone says, which stays until then."""
        statuses = [entry.status for entry in self.receipt.places]
        if "waiting" in statuses:
            return
        state: str = "failed" if "failed" in statuses else "done"
        if self.receipt.state != state:
            self._take(msgspec.structs.replace(self.receipt, state=state, finished_at=datetime.now(UTC)))
            _log.info("erasure_over", id=self.receipt.id, tenant=self.receipt.tenant, state=state)
        if not {"failed", "deferred"} & set(statuses):
            self._places.log.tombstones.forget(self._tombstone.position)


def _of_plugin(view: PluginView | None, position: int, tombstone: int) -> tuple[Status, str]:
    """How a plugin has taken it; ``position`` is how far it has folded and committed, 0 for never."""
    if view is not None and "process" not in view.hooks:
        return "done", "folds no events"
    if position == 0 and (view is None or view.state in RESTING | _FAILING):
        return "done", "holds nothing: it has folded no event yet, or its state was dropped"
    if position <= tombstone:
        return _untold(view)
    if view is None:
        return "rebuild", "is not installed; it has read on, and nobody can tell whether it forgot these events"
    if "erase" in view.hooks:
        return "done", "erased: it has been told, and its state is stored since"
    if "export_state" not in view.hooks:
        return "done", "stateless: what it may hold in memory goes with its restart"
    how = f"'analytics plugins replay {view.name}' rebuilds it"
    return "rebuild", f"has no erase hook: its state may hold what it made of these events; {how}"


def _untold(view: PluginView | None) -> tuple[Status, str]:
    later = "it is told before its next event, and what it has stored is looked through then"
    if view is None:
        return "deferred", f"is not installed; {later}"
    if view.state in _FAILING:
        return "failed", f"is {view.state}: {view.reason}; {later}"
    if view.state in RESTING:
        return "deferred", f"is {view.state}; {later}"
    return "waiting", f"is {view.state} and has not come to the tombstone yet"
