"""Others' answers to the questions of a product analyst: equal to ours, or different by a rule that is named.

Over the real export, where it lies beside the checkout, by what the others said when they were last asked
(`benchmarks/agreement.json`), and asked again where they are installed: ``pip install -e '.[agreement]'``. Over made-up
events, where chDB is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.agreement import ECOM, EXPLAINED, QUESTIONS, Compared, Others, ecom, recorded, said, verdict
from benchmarks.agreement_ours import Clickstream

NAMED = pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
START = datetime(2025, 3, 1, tzinfo=UTC)
WINDOW = "5s"


@lru_cache(maxsize=1)
def shop() -> Clickstream:
    if not ECOM.exists():
        pytest.skip(f"{ECOM} is absent: the export is not part of the project")
    return ecom()


@lru_cache(maxsize=1)
def others() -> Others:
    return Others(shop())


def installed(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install -e '.[agreement]'")


@NAMED
@pytest.mark.shared
def test_we_agree_with_what_others_said_or_say_why_not(question: Compared) -> None:
    how, ours = verdict(question, shop(), recorded()[question.name])
    assert how in ("agrees", *EXPLAINED), f"{question.other} says {recorded()[question.name]}, we {ours}"


@NAMED
@pytest.mark.shared
def test_others_still_say_what_they_said(question: Compared) -> None:
    installed(question.other)
    assert said(question, others()) == recorded()[question.name]


def test_every_rule_is_shown_by_a_question_that_differs_without_it() -> None:
    assert {question.rule for question in QUESTIONS if question.rule} == set(EXPLAINED)
    assert all((question.alike is None) == (not question.rule) for question in QUESTIONS)
    assert {question.name for question in QUESTIONS} == set(recorded())


# --- made up: windowFunnel, level by level ---------------------------------------------------------------------------

Seen = tuple[int, str]
Users = list[list[Seen]]


def clickstream(users: Users) -> Clickstream:
    """Of each user pairs of seconds and event, in log order."""
    return Clickstream(
        [
            {
                "user_id": f"u{number}",
                "session_id": None,
                "event": event,
                "timestamp": START + timedelta(seconds=second),
            }
            for number, seen in enumerate(users)
            for second, event in seen
        ]
    )


def users(distinct_times: bool = False) -> st.SearchStrategy[Users]:
    event = st.tuples(st.integers(0, 12), st.sampled_from("abcx"))
    seen = st.lists(event, min_size=1, max_size=9, unique_by=(lambda each: each[0]) if distinct_times else None)
    return st.lists(seen, min_size=1, max_size=12)


different_steps = st.lists(st.sampled_from("abc"), min_size=2, max_size=3, unique=True)
any_steps = st.lists(st.sampled_from("abc"), min_size=2, max_size=4)


@pytest.fixture(scope="module")
def chdb() -> None:
    installed("chdb")


def asked(users: Users, steps: Sequence[str], **how: Any) -> list[int]:
    return Others(clickstream(users)).chdb.funnel(steps, WINDOW, **how)


@given(users=users(), steps=any_steps)
@settings(max_examples=15)
def test_a_funnel_is_window_funnel_that_takes_an_event_once(chdb: None, users: Users, steps: list[str]) -> None:
    assert clickstream(users).funnel(steps, WINDOW) == asked(users, steps, mode="strict_once")


@given(users=users(distinct_times=True), steps=different_steps)
@settings(max_examples=8)
def test_without_ties_and_repeated_steps_it_is_window_funnel_as_it_is(
    chdb: None, users: Users, steps: list[str]
) -> None:
    assert clickstream(users).funnel(steps, WINDOW) == asked(users, steps, ties="step")


@given(users=users(), steps=different_steps)
@settings(max_examples=8)
def test_equal_times_let_window_funnel_find_more_never_less(chdb: None, users: Users, steps: list[str]) -> None:
    ours, theirs = clickstream(users).funnel(steps, WINDOW), asked(users, steps, ties="step")
    assert all(our <= their for our, their in zip(ours, theirs, strict=True))


@given(users=users(), steps=different_steps)
@settings(max_examples=15)
def test_the_first_attempt_in_strict_order_is_theirs(chdb: None, users: Users, steps: list[str]) -> None:
    theirs = asked(users, steps, mode="strict_order")
    events = clickstream(users)
    assert events.first_attempts(steps).funnel(steps, WINDOW, order="strict") == theirs
    ours = events.funnel(steps, WINDOW, order="strict")
    assert all(our >= their for our, their in zip(ours, theirs, strict=True))
