"""`check_plugin`: the contract that every plugin keeps, checked from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from msgspec import Struct

from analytics_core.testing import asked, folded
from analytics_core.testing.case import Case
from analytics_core.testing.mixed import mixed_rows
from analytics_core.testing.rows import Row

Check = Literal[
    "hooks",  # they fit the specification and plugin.yaml, and setup and teardown run
    "repeats",  # equal input gives equal output, in two fresh instances
    "splits",  # however the rows are split into batches
    "interpreter",  # the state goes on in a fresh interpreter that hashes strings otherwise
    "replay",  # batches without events, which only say that time passes, change no output
    "reload",  # the state goes on in a new generation of the code at every batch boundary
    "first",  # process copes with an empty batch and a tenant that it has never seen
    "tenants",  # the events of one tenant change no output of another
    "export",  # export_state has no side effect
    "batches",  # hooks leave the batch that they are given as it is
    "enrich",  # equal batches are enriched alike, and an empty one too
    "insight",  # equal questions get equal answers
]


class Report(Struct, frozen=True):
    """What became of each check: ``passed``, or ``skipped: `` and the reason. A check that fails raises instead."""

    plugin: str
    checks: dict[Check, str]

    def __str__(self) -> str:
        return "\n".join([self.plugin, *(f"  {check}: {outcome}" for check, outcome in self.checks.items())])


def check_plugin(
    plugin_class: type,
    rows: Sequence[Row] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Run every check of the contract that applies to the hooks of the class.

    ``rows`` are in log order, as `batch` takes them; by default `mixed_rows`, which know nothing of the plugin, so give
    it rows of its own too. ``seed`` chooses the mix, the splits and the hashes of the fresh interpreter.

    :raises AssertionError: for the first check that fails, with its name and what differs.
    """
    case = Case(plugin_class, mixed_rows(seed) if rows is None else rows, settings or {}, seed)
    checks: dict[Check, str] = {}
    for name, check in _CHECKS.items():
        with _named(plugin_class, name):
            reason = check(case)
            checks[name] = f"skipped: {reason}" if reason else "passed"
    return Report(plugin_class.__name__, checks)


_CHECKS: Final[dict[Check, Callable[[Case], str]]] = {
    "hooks": asked.hooks,
    "repeats": folded.repeats,
    "splits": folded.splits,
    "interpreter": folded.interpreter,
    "replay": folded.replay,
    "reload": folded.reload,
    "first": folded.first,
    "tenants": folded.tenants,
    "export": folded.export,
    "batches": folded.batches,
    "enrich": asked.enrich,
    "insight": asked.insight,
}
"""In this order. Each raises AssertionError, or gives the reason why it does not apply, or nothing."""


@contextmanager
def _named(plugin_class: type, check: Check) -> Iterator[None]:
    where = f"{plugin_class.__name__}: check {check!r}"
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
