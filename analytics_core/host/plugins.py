"""`PluginHost`: every plugin of this process, from discovery to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as NotYet
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from analytics_core.bus import Bus
from analytics_core.config import Settings
from analytics_core.errors import PluginUnavailableError
from analytics_core.host.calls import Calls
from analytics_core.host.code.fingerprint import places
from analytics_core.host.code.threads import on_own_thread
from analytics_core.host.health import Transition
from analytics_core.host.installed.discovery import Found, discover
from analytics_core.host.installed.provenance import lock_file
from analytics_core.host.installed.selection import Choice, choose
from analytics_core.host.life.boot_guard import BootGuard
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.life.loopwatch import Blame, LoopWatch
from analytics_core.host.life.reload import aside
from analytics_core.host.life.roster import Roster
from analytics_core.host.life.supervise import TICK_SECONDS, Life
from analytics_core.host.life.workshop import Workshop
from analytics_core.host.replaying.original import RunningPlugin, running_plugin
from analytics_core.host.views import PluginView, announce, plugin_view, record
from analytics_core.lake import EventStore
from analytics_core.lanes import LaneView
from analytics_core.lanes.fold import Backlog
from analytics_core.log import EventLog
from analytics_core.manifest import Deployment
from analytics_core.state import StateStore

SWITCH_SECONDS: Final = 0.0001
"""How long one busy thread may keep the interpreter from the acknowledgement path (DESIGN §7)."""
_SHORTEST_TICK: Final = 0.01
_ENRICH_SECONDS: Final = 5.0
"""How long a start waits for the plugins that enrich: what comes before them goes into the log as it is."""
_CLOSE_SECONDS: Final = 10.0
_RELOAD_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


class PluginHost:
    """Finds, starts and watches the plugins; `calls` calls them. Lives on one event loop; `start` and `close` frame it.

    ``on_commit`` is told each position that a lane has made durable. ``backlog`` reads what the log has trimmed, for a
    lane that is further behind; by default from ``store``. ``find`` and ``restarts`` are there to be other than theirs.
    ``guard`` keeps what is known of earlier starts; by default nothing is.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        log: EventLog,
        store: EventStore | None,
        state: StateStore,
        bus: Bus,
        *,
        on_commit: Callable[[int], None] = lambda _: None,
        backlog: Backlog | None = None,
        find: Callable[[], Sequence[Found]] = discover,
        restarts: RestartPolicy | None = None,
        guard: BootGuard | None = None,
    ) -> None:
        self._settings = settings
        self._deployment = deployment
        self._state = state
        self._bus = bus
        self._find = find
        self.guard = guard or BootGuard()
        workshop = self._workshop = Workshop(
            settings,
            log,
            state,
            backlog=backlog or (store.read if store is not None else None),
            policy=restarts or RestartPolicy(),
            guard=self.guard,
            on_commit=on_commit,
        )
        self._roster = Roster(
            self._choose, workshop, self._observed, lambda receipt: record(receipt, state), lambda: self.calls.enlist()
        )
        self.calls = Calls(self._roster, settings.intake.enrich_seconds)
        self._changed = threading.Event()
        self._moved = threading.Condition()
        self._closing = False
        self._blame = Blame()
        self._loop_watch: LoopWatch | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find all plugins and begin to start those that are to run. Waits only for plugins that enrich, 5 s at most.

        A plugin that fails is a state with a reason, never an exception.
        """
        sys.setswitchinterval(SWITCH_SECONDS)
        await asyncio.to_thread(self._roster.fill)
        self.calls.enlist()
        self._supervisor.start()
        self._loop_watch = LoopWatch(asyncio.get_running_loop(), self._owner, self._blamed)
        self._loop_watch.start()
        await asyncio.to_thread(self._settle)

    def refresh(self, deployment: Deployment | None = None) -> list[str]:
        """Look again at what is installed and what the operator asks for, and bring about what has changed; its names.

        Returns when each change has begun; `views` and the receipts say what became of it. Not for the event loop.
        """
        if deployment is not None:
            self._deployment = deployment
        changed = self._roster.refresh()
        self.calls.enlist()
        self._changed.set()
        return changed

    def places(self) -> frozenset[Path]:
        """The directories and files that decide what a refresh finds."""
        choices = [each for member in self._roster.members() for each in (member.choice, member.latest)]
        lock = {lock_file(self._settings)} if self._settings.plugins.locked else set()
        return frozenset(lock).union(*(places(each.found) for each in choices if each.found is not None))

    def reload(self, name: str) -> ReloadReceipt:
        """Make a new generation of a plugin, changed or not, and wait for what becomes of it. Not for the event loop.

        :raises NotFoundError: for a plugin that is not to run.
        :raises PluginUnavailableError: when that takes too long; it goes on, and `receipts` will have its end.
        """
        asked = self._roster.reload(name)
        self._changed.set()
        try:
            return asked.result(_RELOAD_SECONDS)
        except NotYet:
            raise PluginUnavailableError(name, "is still making its next generation") from None

    def original(self, name: str) -> RunningPlugin:
        """A running plugin whose outputs may be rebuilt; raises as `original.running_plugin`."""
        return running_plugin(self._roster, name)

    async def close(self) -> None:
        """Let every lane commit and end, then end every plugin, by force if need be."""
        self._closing = True
        self._changed.set()
        if self._loop_watch is not None:
            self._loop_watch.stop()
        if self._supervisor.ident is not None:
            await asyncio.to_thread(self._supervisor.join)
        lives = self._roster.lives()
        for life in lives.values():
            life.stop()
        ends = (self._close(name, life) for name, life in lives.items())
        await asyncio.gather(*ends, asyncio.to_thread(self._roster.close, _CLOSE_SECONDS))

    async def _close(self, name: str, life: Life) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * _CLOSE_SECONDS):
                await on_own_thread(f"close:{name}", lambda: life.close(_CLOSE_SECONDS))

    def _choose(self) -> list[Choice]:
        self._workshop.look()
        screen = partial(self.guard.screen, stands_on=self._workshop.stands_on)
        return choose(self._find(), self._settings, self._deployment, screen)

    def _settle(self) -> None:
        """Record what is not to run, while the others load; then wait for those that enrich."""
        self._roster.tell()
        lives = self._roster.lives()
        awaited = [lives[choice.name] for choice in self._roster.running() if choice.lists("enrich")]
        with self._moved:
            self._moved.wait_for(lambda: all(life.settled for life in awaited), _ENRICH_SECONDS)

    def _supervise(self) -> None:
        while not self._closing:
            lives = self._roster.lives().values()
            due = min((self._tick(life) for life in lives), default=TICK_SECONDS)
            self.guard.tick()
            self._changed.wait(min(max(due, _SHORTEST_TICK), TICK_SECONDS))
            self._changed.clear()

    def _tick(self, life: Life) -> float:
        """Seconds until the life needs the next look. What goes wrong with one is not the others' trouble."""
        try:
            life.tick()
            return life.due_in()
        except Exception:
            _log.exception("supervision_failed", plugin=life.health.plugin)
            return TICK_SECONDS

    def _observed(self, transition: Transition) -> None:
        announce(transition, self._state, self._bus)
        self._changed.set()
        with self._moved:
            self._moved.notify_all()
        self.guard.observe(transition)

    def _blamed(self, plugin: str, seconds: float) -> None:
        """A thread of ``plugin`` has blocked the event loop: who does so again and again gets a process of its own."""
        if self._roster.runs(plugin) and (reason := self._blame.add(plugin, seconds)):
            aside(lambda: self._roster.isolate(plugin, reason), f"isolate:{plugin}")

    def _owner(self, thread: str) -> str | None:
        """The plugin that a thread works for, by the thread's name."""
        kind, _, rest = thread.partition(":")
        names = {rest} if kind in ("lane", "fold") else {thread.removesuffix("-call"), thread.removesuffix("-loop")}
        return next((name for name in names if name in self._roster.lives()), None)

    # --- views -------------------------------------------------------------------------------------------------------

    def views(self) -> list[PluginView]:
        """Every plugin that is installed or asked for, sorted by name."""
        return [plugin_view(each.choice, each.health, each.lane) for each in self._roster.members()]

    def receipts(self, name: str) -> list[ReloadReceipt]:
        """What the latest reloads of a plugin have done, the newest last. :raises NotFoundError: for an unknown one."""
        return list(self._roster.member(name).receipts)

    def lanes(self) -> list[LaneView]:
        """The lanes of the plugins that process, in the state of their plugin."""
        views = []
        for life in self._roster.lives().values():
            if life.lane is not None:
                view = life.lane.view()
                state = view.state if life.standing.halted else life.health.state
                reason = life.health.reason or view.reason
                views.append(msgspec.structs.replace(view, state=state, reason=reason))
        return views
