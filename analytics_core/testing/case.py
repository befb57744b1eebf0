"""The subject of the contract checks: a class, and rows cut into batches as a log gives them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.events import EventBatch
from analytics_core.testing.rows import Row, batch
from analytics_core.testing.running import Subject
from analytics_core.testing.splitting import CLOSING

NO_PROCESS: Final = "it has no process"
STATELESS: Final = "stateless: it has no export_state"


class Case(NamedTuple):
    """What is checked: ``rows`` in log order, folded under ``settings``."""

    plugin: type
    rows: Sequence[Row]
    settings: Mapping[str, Any]
    seed: int

    def subject(self) -> Subject:
        """A fresh instance after ``setup``."""
        return Subject(self.plugin, self.settings)

    def batches(self, most: int = 8, tenant: str = "default") -> list[EventBatch]:
        """The rows in up to ``most`` batches, cut at random; the watermark of each is the latest receipt so far."""
        whole = batch(self.rows, tenant)
        inner = range(1, len(whole))
        cuts = sorted(random.Random(self.seed).sample(inner, max(0, min(most - 1, len(inner)))))
        made: list[EventBatch] = []
        for low, high in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            part = whole.record_batch.slice(low, high - low)
            latest = [pc.max(part.column("received_at")).as_py()] if high > low else [whole.watermark]
            watermark = max([*latest, *(each.watermark for each in made[-1:])])
            made.append(EventBatch(part, tenant, watermark))
        return made

    def closing(self, tenant: str = "default") -> EventBatch:
        """Time enough after the last row to close everything."""
        return EventBatch.empty(tenant, self.batches(1, tenant)[-1].watermark + CLOSING)

    def folded(self) -> Subject:
        """The reference: every batch and the closing one, in one instance."""
        subject = self.subject()
        for each in [*self.batches(), self.closing()]:
            subject.process(each)
        return subject

    def why_not(self, *, state: bool = False) -> str:
        """Why checks of a fold, or of its ``state``, do not apply; empty when they do."""
        if not hasattr(self.plugin, "process"):
            return NO_PROCESS
        return STATELESS if state and not hasattr(self.plugin, "export_state") else ""


def first_receipt(each: EventBatch) -> datetime:
    """When the first row of a batch was received."""
    found: datetime = each.column("received_at")[0].as_py()
    return found


def same_content(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    return bool(left.schema.equals(right.schema) and left.equals(right))
