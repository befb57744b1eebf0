"""The README's plugin."""

# my_purchases/plugin.py
from analytics_core import EventBatch, Metric, ProcessResult, Window, hookimpl


class Purchases:
    """Counts purchases per minute."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        changed = {}
        for row in batch.rows():
            if row.name == "purchase":
                minute = row.timestamp.replace(second=0, microsecond=0)
                key = f"{batch.tenant} {minute.isoformat()}"
                self.counts[key] = changed[minute] = self.counts.get(key, 0) + 1
        return ProcessResult(
            metrics=[Metric(name="purchases", value=count, window=Window(minute)) for minute, count in changed.items()]
        )

    @hookimpl
    def export_state(self) -> dict[str, int]:
        return self.counts

    @hookimpl
    def import_state(self, state: dict[str, int], version: int) -> None:
        self.counts = state
