"""The token bucket of errors and of time, with a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.host.life.budget import Budget, RestartPolicy

POLICY = RestartPolicy(
    backoff=1.0, backoff_most=3.0, failures=4, hangs=2, refill=30.0, cool_down=60.0, cool_down_most=100.0
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def budget(policy: RestartPolicy = POLICY, seconds: float = 10.0) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget(policy, seconds, clock), clock


def test_backoff_doubles_rest_follows_and_progress_ends_it() -> None:
    spent, _ = budget()
    assert [spent.failed(5) for _ in range(3)] == [("again", 1.0), ("again", 2.0), ("again", 3.0)]
    assert not spent.committed(5), "up to the window that failed, not beyond it"
    assert [spent.failed(5), spent.failed(5)] == [("rest", 60.0), ("rest", 100.0)]
    assert spent.committed(6)
    assert spent.failed(7, hung=True) == ("again", 1.0)
    assert spent.failed(7, hung=True) == ("rest", 60.0)


def test_progress_between_does_not_save_what_fails_too_often() -> None:
    spent, clock = budget()
    told = []
    for position in range(0, 80, 10):
        told.append(spent.failed(position)[0])
        spent.committed(position + 5)
        clock.now += 1.0
    assert told[:5] == ["again", "again", "again", "again", "rest"]


def test_what_fails_now_and_then_never_rests() -> None:
    spent, clock = budget()
    for position in range(0, 1000, 10):
        assert spent.failed(position) == ("again", 1.0)
        spent.committed(position + 5)
        clock.now += POLICY.refill


@pytest.mark.parametrize("lasts", [0.0, POLICY.refill])
def test_what_fails_for_weeks_is_still_tried_again(lasts: float) -> None:
    spent, clock = budget()
    for _ in range(2_000):
        what, seconds = spent.failed(5)
        clock.now += seconds + lasts
    assert (what, seconds) == (("rest", POLICY.cool_down_most) if lasts == 0.0 else ("again", POLICY.backoff_most))


def test_hangs_count_for_their_time() -> None:
    spent, clock = budget()
    assert spent.failed(1, hung=True)[0] == "again"
    clock.now += 60.0
    assert spent.failed(1, hung=True)[0] == "again"
    assert spent.failed(1, hung=True)[0] == "rest"


def test_failed_calls_cost_little_and_given_up_ones_their_time() -> None:
    spent, _ = budget()
    assert [spent.called() for _ in range(19)] == [0.0] * 19
    assert not spent.strained
    for _ in range(2):
        assert spent.called() == 0.0
    assert spent.strained
    spent, _ = budget()
    assert spent.called(given_up_after=0.05) == 0.0
    assert not spent.strained
    assert spent.called(given_up_after=15.0) == 0.0
    assert spent.strained
    assert spent.called(given_up_after=5.0) == 60.0


@given(st.lists(st.tuples(st.sampled_from(["fail", "hang", "call"]), st.floats(0.0, 100.0)), max_size=60))
def test_within_any_time_no_more_is_borne_than_the_bucket_and_what_flows_in(steps: list[tuple[str, float]]) -> None:
    spent, clock = budget()
    borne = 0.0
    for what, pause in steps:
        clock.now += pause
        if what == "call":
            rests = spent.called() > 0
            borne += 0.1
        else:
            rests = spent.failed(0, hung=what == "hang")[0] == "rest"
            borne += 1.0
        if rests:
            return
        assert borne <= POLICY.failures + clock.now / POLICY.refill
