"""The hook of the plugin; what it does is in the modules beside this one."""

from __future__ import annotations

from analytics_core import Answer, EventReader, Question, hookimpl
from analytics_predictive.forecast import forecast


class Predictive:
    """What a metric will be next, from what it was."""

    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        if question.analysis != "forecast":
            raise ValueError(f"analysis {question.analysis!r} is not provided; valid is: forecast")
        return forecast(events, **question.parameters)
