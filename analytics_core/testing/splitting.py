"""A fold knows no batches: rows in log order give the same however they are split."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from analytics_core.events import EventBatch
from analytics_core.testing.comparing import same
from analytics_core.testing.rows import Row, batch
from analytics_core.testing.running import Subject

_SPLITS: Final = 2
CLOSING: Final = timedelta(days=2)
"""After so long without events every run is told once more that time has passed."""


def check_deterministic(
    plugin_class: type, rows: Sequence[Row], settings: Mapping[str, Any] | None = None, *, seed: int = 0
) -> None:
    """Check that the fold knows no batches: rows in log order give the same outputs and state however they are split.

    They are folded whole, one by one, and split at random; in the split runs every batch goes to a new instance that
    takes over the exported state. Each run ends with an empty batch two days later.

    :raises AssertionError: naming the split and what differs.
    """
    expected = _fold(plugin_class, rows, [], settings, carry=False)
    inner = range(1, len(rows))
    choose = random.Random(seed)
    for count in [len(inner), *(choose.randint(0, len(inner)) for _ in range(_SPLITS))]:
        cuts = sorted(choose.sample(inner, count))
        same(expected, _fold(plugin_class, rows, cuts, settings, carry=True), f"split at {cuts}", "one batch")
    singly = _fold(plugin_class, rows, list(inner), settings, carry=False)
    same(expected, singly, "one by one without export", "one batch")


def _fold(
    plugin_class: type, rows: Sequence[Row], cuts: Sequence[int], settings: Mapping[str, Any] | None, *, carry: bool
) -> Subject:
    subject = Subject(plugin_class, settings)
    whole = batch(rows)
    parts = [whole.record_batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    for part in parts:
        subject.process(EventBatch(part, whole.tenant, whole.watermark))
        if carry:
            subject.renew()
    subject.process(EventBatch.empty(whole.tenant, whole.watermark + CLOSING))
    return subject
