"""The checks of `check_plugin` that need no fold. Each gives the reason why it does not apply, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core.errors import HookRefusedError
from analytics_core.events import EventBatch
from analytics_core.host.refusals import check_hooks
from analytics_core.manifest import AnalysisManifest, fit_schema
from analytics_core.records import Answer, Enrichment, Question
from analytics_core.testing.case import Case
from analytics_core.testing.comparing import shown
from analytics_core.testing.declared import manifest_of
from analytics_core.testing.reader import MemoryReader


def hooks(case: Case) -> str:
    try:
        check_hooks(case.plugin, manifest_of(case.plugin))
    except HookRefusedError as error:
        raise AssertionError(str(error)) from error
    for _ in range(2):  # the host keeps two instances
        case.subject().call("teardown")
    return ""


def enrich(case: Case) -> str:
    if not hasattr(case.plugin, "enrich"):
        return "it has no enrich"
    one, other = case.subject(), case.subject()
    for each in [*case.batches(), EventBatch.empty("default", case.closing().watermark)]:
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


def insight(case: Case) -> str:
    if not hasattr(case.plugin, "insight"):
        return "it has no insight"
    needy = []
    for analysis in manifest_of(case.plugin).provides.analyses:
        parameters, problems = fit_schema(analysis.parameters, {})
        if problems:
            needy.append(analysis.name)
        else:
            _ask_twice(case, analysis, parameters)
    if needy and len(needy) == len(manifest_of(case.plugin).provides.analyses):
        return f"{', '.join(needy)} cannot be asked without parameters"
    return ""


def _ask_twice(case: Case, analysis: AnalysisManifest, parameters: dict[str, Any]) -> None:
    with MemoryReader(case.batches()) as events:
        question = Question(analysis=analysis.name, tenant="default", range=events.range, parameters=parameters)
        first, second = (_plain(case.subject().call("insight", question=question, events=events)) for _ in range(2))
    assert first == second, f"{analysis.name!r} asked twice: {shown(second)} and before {shown(first)}"


def _plain(answer: Answer) -> tuple[Any, ...]:
    table = answer.table.to_pylist() if isinstance(answer.table, pa.Table) else answer.table
    return repr(table), list(answer.insights), list(answer.recommendations), answer.chart
