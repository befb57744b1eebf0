"""A running plugin as its replay sees it."""

from __future__ import annotations

from analytics_core.errors import PluginUnavailableError, ReplayError
from analytics_core.host.life.change import Handover, ReloadReceipt
from analytics_core.host.life.roster import Roster
from analytics_core.host.life.supervise import Life
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.lane import Lane


class RunningPlugin:
    """`replays.Replayable` of a plugin that had ``life`` when its replay began."""

    def __init__(self, name: str, life: Life, roster: Roster) -> None:
        self.name = name
        self._life = life
        self._roster = roster

    @property
    def generation(self) -> int:
        """0 when it was removed or ended meanwhile."""
        return self._life.runtime.generation if self._roster.lives().get(self.name) is self._life else 0

    @property
    def lane(self) -> Lane | None:
        attempt = self._life.carrier()
        return attempt.lane if attempt is not None else None

    def twin(self) -> Runtime:
        return self._life.runtime.twin(self._roster.number(self.name))

    def succeed(self, runtime: Runtime, handover: Handover) -> ReloadReceipt:
        if self.lane is None:
            raise PluginUnavailableError(self.name, "does not run just now")
        return self._roster.hand_over(self.name, runtime, handover).result()


def running_plugin(roster: Roster, name: str) -> RunningPlugin:
    """:raises NotFoundError: for a name that nothing has.
    :raises ReplayError: while it does not run, and for one that folds nothing, or of which no two generations can run
        at once.
    """
    member = roster.member(name)
    life, manifest = member.life, member.choice.manifest
    if life is None or life.carrier() is None or manifest is None:
        why = f": {member.health.reason}" if member.health.reason else ""
        raise ReplayError(name, f"only a plugin that runs is replayed; just now it is {member.health.state}{why}")
    if "process" not in life.hooks:
        raise ReplayError(name, "has no 'process', so there is nothing to rebuild")
    if (strategy := manifest.reload.strategy) != "side_by_side":
        raise ReplayError(name, f"its reload.strategy is {strategy}, and a replay runs beside it")
    if reason := life.runtime.hindrance():
        raise ReplayError(name, f"no replay can run beside it: {reason}")
    return RunningPlugin(name, life, roster)
