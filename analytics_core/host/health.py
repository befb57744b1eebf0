"""The states of a plugin (DESIGN §9), which of them may follow which, and when a failed plugin is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct

from analytics_core.errors import PluginError

State = Literal[
    "discovered",  # found, not judged yet
    "invalid",  # its manifest cannot be read, or its name or a route is taken
    "incompatible",  # made for another host or Python
    "blocked",  # a plugin that it requires is absent or not running, or safe mode keeps it out
    "disabled",  # by the operator; nothing but the operator ends this
    "unresolved",  # named by the operator but not installed, or its settings do not fit
    "loading",  # its code is being imported and its hooks are checked
    "load_error",
    "starting",  # setup, and taking over the state of its checkpoint
    "start_error",  # setup refused
    "retrying",  # a start that broke off is tried again
    "active",
    "degraded",  # it failed while running and goes on from its checkpoint
    "quarantined",  # it failed too often in a row and rests
    "half_open",  # one attempt after the rest
    "reloading",  # the present generation runs on while the next one is made beside it
    "rolled_back",  # the next generation failed; the present one runs on
    "restart_required",  # the change needs a new process of the host; the present generation runs on
]

_JUDGED: Final[frozenset[State]] = frozenset({"invalid", "incompatible", "blocked", "disabled", "unresolved"})
"""States in which a plugin is not to run, by what is installed and what the operator asks for."""
_ANEW: Final[frozenset[State]] = frozenset({"discovered"})
_AFTER: Final[dict[State, frozenset[State]]] = {
    "discovered": frozenset({"loading"}),
    "invalid": frozenset(),
    "incompatible": frozenset(),
    "blocked": frozenset({"loading"}),
    "disabled": frozenset(),
    "unresolved": frozenset(),
    "loading": frozenset({"load_error", "starting", "retrying", "quarantined"}),
    "load_error": frozenset(),
    "starting": frozenset({"start_error", "retrying", "active", "quarantined", "degraded"}),
    "start_error": frozenset(),
    "retrying": frozenset({"loading"}),
    "active": frozenset({"degraded", "quarantined", "reloading", "rolled_back", "restart_required"}),
    "degraded": frozenset({"active", "degraded", "quarantined", "reloading", "rolled_back", "restart_required"}),
    "quarantined": frozenset({"half_open", "reloading"}),
    "half_open": frozenset({"active", "quarantined", "reloading", "rolled_back", "restart_required"}),
    "reloading": frozenset({"active", "degraded", "quarantined", "rolled_back", "restart_required"}),
    "rolled_back": frozenset({"active", "degraded", "quarantined", "reloading", "restart_required"}),
    "restart_required": frozenset({"active", "degraded", "quarantined", "reloading", "rolled_back"}),
}
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    state: after.union(_JUDGED, _ANEW) for state, after in _AFTER.items()
}
"""What may follow what. When what is installed or asked for changes, any state may end in one of `_JUDGED`, or begin
anew as ``discovered``."""

RUNNING: Final[frozenset[State]] = frozenset(
    {"active", "degraded", "half_open", "reloading", "rolled_back", "restart_required"}
)
"""States in which a plugin's concurrent hooks may be called."""
BEGINNING: Final[frozenset[State]] = frozenset({"discovered", "loading", "starting"})
"""States of a plugin of which nobody knows yet whether it will run."""
RISING: Final[frozenset[State]] = BEGINNING | {"retrying"}
"""States of a plugin that is on its way to run."""
FINAL: Final[frozenset[State]] = frozenset(state for state, after in _AFTER.items() if not after)
"""States that end only when what is installed or asked for changes."""


class Transition(Struct, frozen=True):
    """One change of state, as it is logged, recorded and pushed."""

    plugin: str
    before: State
    state: State
    reason: str
    since: datetime
    generation: int


class Health:
    """The state of one plugin. Safe for use from any thread; ``observe`` is told each transition, in order."""

    def __init__(self, plugin: str, observe: Callable[[Transition], None] = lambda _: None) -> None:
        self.plugin = plugin
        self.state: State = "discovered"
        self.reason = ""
        self.since = datetime.now(UTC)
        self.generation = 0
        self.errors = 0
        self._observe = observe
        self._lock = threading.RLock()

    def move(self, state: State, reason: str = "", *, generation: int | None = None) -> None:
        """Enter ``state``. The same state with a new reason is a transition too; with the same reason it is none.

        :raises PluginError: when ``state`` may not follow the present one.
        """
        with self._lock:
            if state == self.state and reason == self.reason:
                return
            if state != self.state and state not in TRANSITIONS[self.state]:
                allowed = ", ".join(sorted(TRANSITIONS[self.state])) or "none"
                raise PluginError(self.plugin, f"{state!r} cannot follow {self.state!r}; valid are: {allowed}")
            before, self.state, self.reason = self.state, state, reason
            self.since = datetime.now(UTC)
            if generation is not None:
                self.generation = generation
            self._observe(Transition(self.plugin, before, state, reason, self.since, self.generation))
