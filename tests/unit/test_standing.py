"""What a failure means for a plugin whose generation changes meanwhile, and a change whose end nobody could be told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from analytics_core.host.health import Health, State, Transition
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.change import Change, ReloadReceipt
from analytics_core.host.life.standing import Standing

ONCE = RestartPolicy(failures=1)


def resting() -> tuple[Standing, list[State]]:
    """A plugin that rests, and the states that follow."""
    states: list[State] = []

    def observe(transition: Transition) -> None:
        states.append(transition.state)

    standing = Standing(Health("shop", observe), ONCE, 1.0)
    for state in ("loading", "starting", "active", "reloading"):
        standing.health.move(state)  # type: ignore[arg-type]
    standing.failed(ValueError("bad luck"), 5, hung=False)
    assert states.pop() == "quarantined"
    states.clear()
    return standing, states


def test_after_the_rest_there_is_one_attempt() -> None:
    standing, states = resting()
    standing.attempted()
    standing.failed(ValueError("again"), 5, hung=False)
    assert states == ["half_open", "quarantined"]


def test_another_generation_begins_anew_and_may_fail_at_once() -> None:
    standing, states = resting()
    standing.begins_anew(1.0)
    standing.attempted()
    standing.health.move("loading")
    standing.failed(ConnectionError("not yet"), -1, hung=False)
    assert states == ["discovered", "loading", "quarantined"]


def test_a_change_ends_though_nobody_could_be_told() -> None:
    def settled(receipt: ReloadReceipt) -> None:
        raise OSError("no space left")

    runtime: Any = SimpleNamespace(plugin="shop", generation=2)
    change = Change(runtime, "side_by_side", lambda: None, settled)
    receipt = ReloadReceipt.of("shop", 1, 2, "active", "")
    with capture_logs() as logs:
        change.settle(receipt)
    assert change.receipt.result(0) is receipt
    assert [line["event"] for line in logs] == ["receipt_not_told"]
