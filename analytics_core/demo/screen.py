"""What the demo knows of the server at one moment, and how it is shown: a live table, or plain lines."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_GOOD: Final = ("active", "running")
_RATE_SECONDS: Final = 5.0
_METRICS_SHOWN: Final = 30
_METRICS_ABREAST: Final = 3
_METRICS_IN_A_LINE: Final = 5
_PAGES: Final = (
    ("plugins", "/api/v1/plugins"),
    ("lanes", "/api/v1/lanes"),
    ("live stream", "/api/v1/stream"),
    ("metrics", "/api/analytics/metrics"),
    ("health", "/api/analytics/health"),
    ("everything", "/"),
)


@dataclass
class View:
    """``lanes`` as GET /api/v1/lanes gives them; ``metrics``: latest value by name.

    ``refused`` counts requests that were answered "busy" and sent again.
    """

    url: str
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    refused: int = 0
    campaign: str = ""
    slowdown: float = 1.0
    lanes: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    insights: deque[str] = field(default_factory=lambda: deque(maxlen=4))
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, accepted: int, duplicates: int, rejected: int) -> None:
        """Add one request's answer."""
        self.accepted += accepted
        self.duplicates += duplicates
        self.rejected += rejected
        now = time.monotonic()
        self._history.append((now, self.accepted))
        while self._history[0][0] < now - _RATE_SECONDS:
            self._history.popleft()

    @property
    def rate(self) -> float:
        """Accepted events per second over the last five seconds."""
        if len(self._history) < 2:
            return 0.0
        (start, before), (end, after) = self._history[0], self._history[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def note_metric(self, name: str, value: float, labels: dict[str, Any]) -> None:
        """A value that was pushed; those with labels are parts of another one and are left out."""
        if not labels:
            self.metrics[name] = value


def table(view: View) -> RenderableType:
    """The live screen."""
    return Group(
        _traffic(view), Text(), _lanes(view), Text(), _metrics(view), Text(), _insights(view), Text(), _foot(view)
    )


def _traffic(view: View) -> Text:
    shown = Text.assemble(
        ("simulated shop  ", "bold"),
        (f"{view.rate:,.0f} events/s", "bold cyan"),
        f"   accepted {view.accepted:,}   duplicates {view.duplicates:,}   rejected {view.rejected:,}",
    )
    if view.refused:
        shown.append(f"   busy {view.refused:,}", style="yellow")
    if view.campaign:
        shown.append(f"   campaign: {view.campaign}", style="magenta")
    if view.slowdown > 1:
        shown.append(f"   checkout {view.slowdown:.1f}x slower", style="red")
    return shown


def _lanes(view: View) -> RenderableType:
    lanes = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("lane", "state", "lag", "events", "reason"):
        lanes.add_column(name, justify="right" if name in ("lag", "events") else "left")
    for lane in view.lanes:
        state = str(lane.get("state", ""))
        lanes.add_row(
            Text(str(lane.get("name", ""))),
            Text(state, style="green" if state in _GOOD else "yellow"),
            f"{lane.get('lag') or 0:,}",
            f"{lane.get('events') or 0:,}",
            Text(str(lane.get("reason") or "")),
        )
    return lanes


def _metrics(view: View) -> RenderableType:
    if not view.metrics:
        return Text("no metrics yet", style="dim")
    metrics = Table(box=None, pad_edge=False, header_style="bold")
    for _ in range(_METRICS_ABREAST):
        metrics.add_column("metric, its window so far")
        metrics.add_column("value", justify="right")
    cells = [
        cell for name in sorted(view.metrics)[:_METRICS_SHOWN] for cell in (Text(name), _number(view.metrics[name]))
    ]
    for start in range(0, len(cells), 2 * _METRICS_ABREAST):
        metrics.add_row(*cells[start : start + 2 * _METRICS_ABREAST])
    return metrics


def _insights(view: View) -> RenderableType:
    lines = [Text.assemble(("insight  ", "bold"), line) for line in view.insights]
    return Group(*lines) if lines else Text("no insights yet", style="dim")


def _foot(view: View) -> Text:
    foot = Text("open\n", style="bold")
    for name, path in _PAGES:
        foot.append(f"  {name:12} {view.url}{path}\n", style="not bold")
    return foot.append("stop").append("  Ctrl-C", style="not bold")


def line(view: View) -> str:
    """One plain line, for output that is no terminal."""
    lanes = ", ".join(f"{lane.get('name')} {lane.get('state')} lag {lane.get('lag')}" for lane in view.lanes)
    counts = f"{view.accepted:,} accepted, {view.duplicates:,} duplicates, {view.rejected:,} rejected"
    said = f"{view.rate:,.0f} events/s, {counts}"
    metrics = ", ".join(f"{name} {_number(view.metrics[name])}" for name in sorted(view.metrics)[:_METRICS_IN_A_LINE])
    return " | ".join(part for part in (said, lanes, metrics) if part)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1_000 else f"{value:,.3g}"
