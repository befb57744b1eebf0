"""An answer on a terminal: its table, and what its chart says is best seen as bars, a line or a triangle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from analytics_core.cli.ask_bands import tables, triangle
from analytics_core.cli.ask_table import Column, clean, columns, finite, instant, number, share

_LINES: Final = 8
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_SHADES: Final = {"info": "", "low": "cyan", "medium": "yellow", "high": "red", "critical": "bold red"}


def show_answer(answer: Mapping[str, Any], console: Console) -> None:
    """Title, rows, notes, findings and freshness. Only a terminal is drawn on."""
    asked = answer["parameters"]
    zone = str(asked.get("timezone", "UTC"))
    console.print(Text(title(answer["analysis"], asked["timeRange"], zone), style="bold"), soft_wrap=True)
    for part in _drawn(answer, console):
        console.print(part, soft_wrap=not isinstance(part, Table))
    for note in answer.get("notes", ()):
        _say(Text.assemble(("note: ", "yellow"), clean(note)), console)
    show_findings(answer, console, zone)
    if answer.get("quality"):
        _say(Text(quality(answer["quality"]), style="dim"), console)


def show_findings(answer: Mapping[str, Any], console: Console, zone: str) -> None:
    """Each insight, below it what it recommends, and how fresh they are."""
    advised: dict[str, list[Mapping[str, Any]]] = {}
    for advice in answer["recommendations"]:
        advised.setdefault(advice["insight"], []).append(advice)
    for insight in answer["insights"]:
        severity, query = insight["severity"], insight.get("query")
        words = clean(f"{insight['title']}. {insight['description']}")
        source = f" ({clean(query['analysis'])}, confidence {insight['confidence']:.0%})" if query else ""
        _say(Text.assemble((f"{severity}: ", _SHADES.get(severity, "")), words, (source, "dim")), console)
        for advice in advised.pop(insight.get("id", insight["key"]), ()):
            _say(_advice(advice), console)
    for left in advised.values():
        for advice in left:
            _say(_advice(advice), console)
    _say(Text(freshness(answer, zone), style="dim"), console)


def _advice(advice: Mapping[str, Any]) -> Text:
    return Text(clean(f"  → {advice['title']}: {advice['description']}"))


def _say(words: Text, console: Console) -> None:
    """One paragraph; lines end between words on a terminal, and nowhere else."""
    console.print(words, soft_wrap=not console.is_terminal)


def title(name: str, span: Mapping[str, str], zone: str) -> str:
    """``funnel, 2025-01-03 12:00 to 2025-01-10 12:00 (Europe/Berlin)``."""
    start, end = (instant(span[edge], ZoneInfo(zone)) for edge in ("start", "end"))
    return f"{name}, {start} to {end} ({zone})"


def freshness(answer: Mapping[str, Any], zone: str = "UTC") -> str:
    """``as of 2025-01-10 12:00:07 (Europe/Berlin)``, and the log's clock where that is another time."""
    if answer.get("data_as_of") is None:
        return "as of nothing: no event has come yet"
    known, clock = (instant(answer[key], ZoneInfo(zone)) for key in ("data_as_of", "watermark"))
    return f"as of {known} ({zone})" + (f", watermark {clock}" if clock != known else "")


def quality(found: Mapping[str, Any]) -> str:
    """``1,204 events in the range: 12 late, 3 duplicates dropped, 0.8% from bots``."""
    if not found["events"]:
        return "no event in the range"
    told = [f"{number(found['late'])} late", f"{number(found['duplicates'])} duplicates dropped"]
    bots = found.get("bot_share")
    told += [] if bots is None else [f"{share(bots)} from bots"]
    return f"{number(found['events'])} events in the range: {', '.join(told)}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _drawn(answer: Mapping[str, Any], console: Console) -> Iterator[RenderableType]:
    rows, shown = answer["data"], columns(answer)
    if not rows:
        yield Text("(no rows)", style="dim")
        return
    chart = (answer.get("chart") or {}) if console.is_terminal else {}
    names, y = [column.name for column in shown], [name for name in chart.get("y", ()) if name in rows[0]]
    kind = chart.get("kind") if y else None
    if kind == "heatmap" and {chart["x"], chart["series"]} <= set(names):
        yield Text(y[0], style="bold")
        yield from triangle(rows, shown, chart["x"], y[0], chart["series"], console.width)
        return
    yield from tables(rows, shown, chart.get("x", ""), y[0] if kind in ("funnel", "bar") else None, console.width)
    if kind == "line":
        yield from _sparklines(rows, y, chart.get("series", ""), {column.name: column for column in shown})


# --- lines -----------------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    label: str
    values: list[float | None]
    column: Column


def _sparklines(
    rows: Sequence[Mapping[str, Any]], y: Sequence[str], series: str, by_name: Mapping[str, Column]
) -> Iterator[Text]:
    """One line per y and series, of the first eight; between the least and the greatest value."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get(series) if series else None, []).append(row)
    lines = [
        _Line(" ".join(filter(None, (name, by_name[series].show(group) if series in by_name else ""))), [
            finite(row.get(name)) for row in members
        ], by_name[name])
        for group, members in groups.items() for name in y
    ]  # fmt: skip
    width = max((len(line.label) for line in lines[:_LINES]), default=0)
    for line in lines[:_LINES]:
        known = [value for value in line.values if value is not None]
        if known:
            span = f"{line.column.show(min(known))} to {line.column.show(max(known))}"
            yield Text.assemble(f"{line.label:<{width}} ", (sparkline(line.values), "cyan"), f" {span}")


def sparkline(values: Sequence[float | None]) -> str:
    """A character per value, or per equal share of them beyond 60: the mean of those that are known."""
    step = max(1, -(-len(values) // 60))
    cells = [[v for v in values[at : at + step] if v is not None] for at in range(0, len(values), step)]
    means = [sum(cell) / len(cell) if cell else None for cell in cells]
    known = [mean for mean in means if mean is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    top = len(_LEVELS) - 1
    return "".join(
        " " if m is None else _LEVELS[round((m - low) / (high - low) * top) if high > low else 0] for m in means
    )
