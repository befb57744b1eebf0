"""The user-order cache: each tenant's events in user order, brought forward by each question with what came since."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from analytics_core.errors import BuildingError, StoppingError
from analytics_core.lake.order_files import OrderFiles
from analytics_core.lake.value_column import ValueColumn
from analytics_core.memory import give_back
from analytics_core.metrics.filters import Field
from analytics_core.queries import tenant_order
from analytics_core.queries.handed_order import HandedOrder
from analytics_core.queries.pieces import SMALL
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.tenant_order import TenantOrder
from analytics_core.queries.user_order import View

MOST_AWAKE: Final = 64
"""Tenants of which something is held at a time, the latest; of the others there are files."""
SOON: Final = 1 << 18
"""Events that are read while a question waits that can be answered without them: a fraction of a second."""
AT_HAND_SECONDS: Final = 0.5
"""How long is waited for what can be had in another way."""
_log = structlog.get_logger(__name__)


class OrderCache:
    """Gives the view of a snapshot. Safe for use from any thread.

    ``directory`` holds a folder for each tenant; ``snapshot`` opens a tenant's events as they are now, for what takes
    longer than a question may wait.
    """

    def __init__(self, directory: Path, snapshot: Callable[[str], Snapshot]) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._tenants: OrderedDict[str, TenantOrder] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = False
        self._relief: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="user-order-cache")

    def view(self, source: Snapshot) -> View:
        """:raises BuildingError: when what is missing takes longer than a question may take."""
        tenant = self._awake(source)
        if source.rows - tenant.held.seen > tenant_order.FLUSH or not self._forwarded(tenant, source):
            made = self._begin(tenant, "order", tenant.bring)
            _wait(made, source.patience, tenant.refuse)
        with tenant.locked(source.patience):
            tenant.awake(source)
            tenant.forward(source)
            tenant.join(source)
            view = tenant.held.view(source.position, lambda field: self._column(tenant, source, field))
        self._relieve()
        return view

    def _forwarded(self, tenant: TenantOrder, source: Snapshot) -> bool:
        """Whether it holds what ``source`` holds and nothing else; what is small is mended for that."""
        with tenant.locked(source.patience):
            tenant.awake(source)
            right = tenant.forward(source)
            if not right and tenant.held.seen <= tenant_order.FLUSH:
                tenant.mend(source)
                right = True
            return right

    def _column(self, tenant: TenantOrder, source: Snapshot, field: Field) -> ValueColumn | None:
        if not field.path:
            return None
        if tenant.values.missing(field, source.position) > tenant_order.FLUSH < source.rows:
            made = self._begin(tenant, field.name, partial(tenant.values.bring, field))
            _wait(made, source.patience, partial(tenant.values.refuse, field))
        return tenant.values.column(field, source, source.patience)

    def at_hand(self, source: Snapshot) -> View | None:
        """As `view`, and its columns, as far as little has to be read for them; what is not at hand is None, and is
        read in the background once this question has its answer, for those who ask later.

        :raises BuildingError: when somebody else is at them for longer than `AT_HAND_SECONDS`.
        """
        tenant = self._awake(source)
        held = tenant.held
        if held.upto <= source.position and not 0 <= source.rows - held.seen <= SOON:
            self._begin_after(source, tenant, "order", tenant.bring)
            return None
        with tenant.locked(AT_HAND_SECONDS):
            tenant.awake(source)
            if not tenant.forward(source):
                self._begin_after(source, tenant, "order", tenant.bring)
                return None
            view = tenant.held.view(source.position, lambda field: self._column_at_hand(tenant, source, field))
        self._relieve()
        return view

    def _column_at_hand(self, tenant: TenantOrder, source: Snapshot, field: Field) -> ValueColumn | None:
        making = tenant.making.get(field.name)
        if not field.path or (making is not None and not making.done()):
            return None
        if tenant.values.missing(field, source.position) > SOON:
            self._begin_after(source, tenant, field.name, partial(tenant.values.bring, field))
            return None
        return tenant.values.column(field, source, AT_HAND_SECONDS)

    def handed(self, source: Snapshot) -> HandedOrder | None:
        """What another process can read of a snapshot without sorting; None for nothing."""
        return self._tenant(source.tenant).handed(source)

    def drop(self, tenant: str) -> None:
        """Forget a tenant and delete its files; its next question reads all anew."""
        found = self._tenant(tenant)
        with found.locked(None):
            found.forget()

    def stop(self) -> None:
        """End what is under way. Does not wait for that."""
        self._stopping = True

    def close(self) -> None:
        """Write what is in memory and is worth it, and end."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for tenant in list(self._tenants.values()):
            tenant.save()

    def _go_on(self) -> None:
        if self._stopping:
            raise StoppingError

    def _tenant(self, name: str) -> TenantOrder:
        with self._lock:
            if name not in self._tenants:
                self._tenants[name] = TenantOrder(name, OrderFiles(self._directory / name), self._go_on)
            self._tenants.move_to_end(name)
            return self._tenants[name]

    def _awake(self, source: Snapshot) -> TenantOrder:
        tenant = self._tenant(source.tenant)
        if tenant.resting:  # nobody has the lock for long then
            with tenant.locked(source.patience):
                tenant.awake(source)
        return tenant

    # --- in the background -------------------------------------------------------------------------------------------

    def _begin(self, tenant: TenantOrder, what: str, work: Callable[[Snapshot], None]) -> Future[None]:
        """Have ``work`` done in the background on a snapshot of its own; whoever asks meanwhile gets the same."""
        with self._lock:
            making = tenant.making.get(what)
            if making is None or making.done():
                self._go_on()
                making = tenant.making[what] = self._pool.submit(self._work, tenant, what, work)
            return making

    def _begin_after(self, source: Snapshot, tenant: TenantOrder, what: str, work: Callable[[Snapshot], None]) -> None:
        """As `_begin`, when ``source`` is closed: till then it would only take the time of the question."""

        def begin() -> None:
            with suppress(StoppingError, RuntimeError):  # the host ends, or has ended
                self._begin(tenant, what, work)

        source.at_end(begin)

    def _work(self, tenant: TenantOrder, what: str, work: Callable[[Snapshot], None]) -> None:
        began = time.monotonic()
        try:
            source = self._snapshot(tenant.name)
            try:
                work(source)
            finally:
                source.close()
        except Exception as error:
            if not self._stopping:
                _log.warning("user_order_not_made", tenant=tenant.name, what=what, reason=str(error))
            raise
        finally:
            tenant.making.pop(what, None)
            give_back()
        _log.debug("user_order_made", tenant=tenant.name, what=what, seconds=round(time.monotonic() - began, 1))

    def _relieve(self) -> None:
        """Let the largest tenant go to files when all together hold much, and the earliest rest when they are many."""
        with self._lock, suppress(RuntimeError):  # it is closed
            if self._relief is not None and not self._relief.done():
                return
            tenants = [tenant for tenant in self._tenants.values() if not tenant.resting]
            if sum(tenant.held.in_memory for tenant in tenants) >= tenant_order.FLUSH:
                largest = max(tenants, key=lambda tenant: tenant.held.in_memory)
                self._relief = self._pool.submit(largest.tidy, SMALL)
            elif len(tenants) > MOST_AWAKE:
                self._relief = self._pool.submit(_rest, tenants[:-MOST_AWAKE])


def _wait(made: Future[None], patience: float, refuse: Callable[[], BuildingError]) -> None:
    try:
        made.result(patience)
    except TimeoutError:
        raise refuse() from None
    except CancelledError:
        raise StoppingError from None


def _rest(tenants: Sequence[TenantOrder]) -> None:
    for tenant in tenants:
        tenant.rest()
