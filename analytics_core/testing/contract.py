"""`check_plugin`: the contract that every plugin keeps, checked from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import PluginError
from analytics_core.manifest import fit_schema
from analytics_core.records import Answer, Enrichment, Question
from analytics_core.testing import folds
from analytics_core.testing.folds import Case
from analytics_core.testing.rows import Row, mixed_rows
from analytics_core.testing.running import Subject, same, shown

Check = Literal[
    "hooks",  # they fit the specification and plugin.yaml, and setup and teardown run
    "repeats",  # equal input gives equal output, in two fresh instances
    "splits",  # however the rows are split into batches
    "interpreter",  # the state goes on in a fresh interpreter that hashes strings otherwise
    "replay",  # batches without events, which only say that time passes, change no output
    "reload",  # the state goes on in a new generation of the code at every batch boundary
    "first",  # process copes with an empty batch and a tenant that it has never seen
    "tenants",  # each tenant gets what it gets alone, whatever the events of others
    "export",  # export_state has no side effect
    "batches",  # hooks leave the batch that they are given as it is
    "enrich",  # equal batches are enriched alike, and an empty one too
    "insight",  # equal questions get equal answers
    "instances",  # process shares nothing with enrich and insight, for which the host has a second instance
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


@contextmanager
def _named(plugin_class: type, check: Check) -> Iterator[None]:
    where = f"{plugin_class.__name__}: check {check!r}"
    try:
        yield
    except (AssertionError, PluginError) as error:
        raise AssertionError(f"{where}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error


# --- the checks that need no fold: each gives the reason why it does not apply, or nothing ---------------------------


def _hooks(case: Case) -> str:
    with case.subject(), case.subject():  # the host keeps two instances
        return ""


def _enrich(case: Case) -> str:
    if "enrich" not in case.hooks:
        return "it has no enrich"
    with case.subject() as one, case.subject() as other:
        for each in case.given():
            first, second = (_columns(subject.call("enrich", batch=each)) for subject in (one, other))
            assert first == second, f"a second instance gives {shown(second)} where the first gives {shown(first)}"
    return ""


def _columns(found: Enrichment | None) -> Any:
    if found is None:
        return None
    return tuple(None if column is None else _values(column) for column in (found.properties, found.drop))


def _values(column: Any) -> list[Any]:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return list(column.to_pylist())
    return list(np.asarray(column).tolist())


def _insight(case: Case) -> str:
    if "insight" not in case.hooks:
        return "it has no insight"
    with case.subject() as one, case.subject() as other:
        first = _answers(case, one)
        for said, again in (("asked twice", _answers(case, one)), ("another instance", _answers(case, other))):
            for analysis, answer in first.items():
                assert answer == again[analysis], (
                    f"{analysis!r}, {said}: {shown(again[analysis])} and before {shown(answer)}"
                )
    return "" if first else _unasked(case)


def _unasked(case: Case) -> str:
    names = ", ".join(analysis.name for analysis in case.code.manifest.provides.analyses)
    return f"{names} cannot be asked without parameters"


def _answers(case: Case, subject: Subject) -> dict[str, Any]:
    """What ``subject`` answers to every analysis that needs no parameter."""
    from analytics_core.testing.reader import MemoryReader  # DuckDB, for whom has questions to answer

    answers = {}
    for analysis in case.code.manifest.provides.analyses:
        parameters, problems = fit_schema(analysis.parameters, {})
        if problems:
            continue
        with MemoryReader(case.batches()) as events:
            question = Question(analysis=analysis.name, tenant="default", range=events.range, parameters=parameters)
            answers[analysis.name] = _plain(subject.call("insight", question=question, events=events))
    return answers


def _plain(answer: Answer) -> tuple[Any, ...]:
    table = answer.table.to_pylist() if isinstance(answer.table, pa.Table) else answer.table
    return repr(table), list(answer.insights), list(answer.recommendations), answer.chart


def _instances(case: Case) -> str:
    beside = sorted({"enrich", "insight"} & case.hooks)
    if reason := case.why_not():
        return reason
    if not beside:
        return "it has neither enrich nor insight"
    with case.subject() as concurrent:
        expected = _beside(case, None, concurrent)
    if not expected:
        return _unasked(case)
    names = " and ".join(beside)
    with case.subject() as lane, case.subject() as concurrent:
        got = _beside(case, lane, concurrent)
        _same_beside(case, expected, got, lane, f"with {names} called on a second instance, as the host does")
    with case.subject() as both:
        got = _beside(case, both, both)
        _same_beside(case, expected, got, both, f"with {names} called on the instance that folds, unlike in the host")
    return ""


def _beside(case: Case, lane: Subject | None, concurrent: Subject) -> list[tuple[str, Any]]:
    """Enrich every batch before it is folded, and ask every question after the first; what ``concurrent`` said."""
    said: list[tuple[str, Any]] = []
    for number, each in enumerate(case.given(), 1):
        if "enrich" in case.hooks:
            said.append((f"enrich, batch {number}", _columns(concurrent.call("enrich", batch=each))))
        if lane is not None:
            lane.process(each)
        if number == 1 and "insight" in case.hooks:
            said.extend(_answers(case, concurrent).items())
    return said


def _same_beside(case: Case, expected: list[Any], got: list[Any], lane: Subject, how: str) -> None:
    same(case.reference, lane.folded(), how, "process alone")
    for (what, alone), (_, now) in zip(expected, got, strict=True):
        assert alone == now, f"{how}: {what}: {shown(now)} where an instance that folds nothing gives {shown(alone)}"


_CHECKS: Final[dict[Check, Callable[[Case], str]]] = {
    "hooks": _hooks,
    "repeats": folds.repeats,
    "splits": folds.splits,
    "interpreter": folds.interpreter,
    "replay": folds.replay,
    "reload": folds.reload,
    "first": folds.first,
    "tenants": folds.tenants,
    "export": folds.export,
    "batches": folds.batches,
    "enrich": _enrich,
    "insight": _insight,
    "instances": _instances,
}
"""In this order."""
