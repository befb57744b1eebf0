"""An answer on a terminal: its table, and what its chart says is best seen as bars, a line or a triangle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from analytics_core.cli.ask_table import NOTHING, Column, clean, columns, finite, instant, share

_BAR: Final = 24
_APART: Final = 3
_LEAST_WORDS: Final = 12
_LINES: Final = 8
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_COLD, _HOT = (24, 36, 58), (38, 166, 154)
_SHADES: Final = {"info": "", "low": "cyan", "medium": "yellow", "high": "red", "critical": "bold red"}


def show_answer(answer: Mapping[str, Any], console: Console) -> None:
    """Title, rows, findings and freshness. Only a terminal is drawn on."""
    asked = answer["parameters"]
    heading = title(answer["analysis"], asked["timeRange"], str(asked.get("timezone", "UTC")))
    console.print(Text(heading, style="bold"), soft_wrap=True)
    plain = [] if console.is_terminal else [_table(answer, columns(answer), None, console.width)]
    for part in plain or _drawn(answer, console.width):
        console.print(part, soft_wrap=not isinstance(part, Table))
    show_findings(answer, console)


def show_findings(answer: Mapping[str, Any], console: Console) -> None:
    """Insights and recommendations, a line each, and how fresh they are."""
    for insight in answer["insights"]:
        severity = insight["severity"]
        words = clean(f"{insight['title']}. {insight['description']}")
        console.print(Text.assemble((f"{severity}: ", _SHADES.get(severity, "")), words), soft_wrap=True)
    for advice in answer["recommendations"]:
        console.print(Text(clean(f"→ {advice['title']}: {advice['description']}")), soft_wrap=True)
    console.print(Text(freshness(answer), style="dim"), soft_wrap=True)


def title(name: str, span: Mapping[str, str], zone: str) -> str:
    """``funnel, 2025-01-03 12:00 to 2025-01-10 12:00 (Europe/Berlin)``."""
    start, end = (instant(span[edge], ZoneInfo(zone)) for edge in ("start", "end"))
    return f"{name}, {start} to {end} ({zone})"


def freshness(answer: Mapping[str, Any]) -> str:
    if answer.get("data_as_of") is None:
        return "as of nothing: no event has come yet"
    return f"as of {answer['data_as_of']} (watermark {answer['watermark']})"


# --- rows ------------------------------------------------------------------------------------------------------------


def _drawn(answer: Mapping[str, Any], room: int) -> Iterator[RenderableType]:
    chart, rows = answer.get("chart") or {}, answer["data"]
    shown = columns(answer)
    names, y = [column.name for column in shown], [name for name in chart.get("y", ()) if rows and name in rows[0]]
    kind = chart.get("kind") if y else None
    if kind == "heatmap" and {chart["x"], chart["series"]} <= set(names):
        yield Text(y[0], style="bold")
        yield _triangle(rows, chart["x"], y[0], chart["series"], shown)
        return
    yield _table(answer, shown, y[0] if kind in ("funnel", "bar") else None, room)
    if kind == "line":
        yield from _sparklines(rows, y, chart.get("series", ""), {column.name: column for column in shown})


def _table(answer: Mapping[str, Any], shown: Sequence[Column], barred: str | None, room: int) -> RenderableType:
    """Every row; beside the column ``barred`` a bar of its values. Where ``room`` is short, headings wrap and the bars
    are short, and no number is cut."""
    if not answer["data"]:
        return Text("(no rows)", style="dim")
    cells = {column.name: [column.show(row.get(column.name)) for row in answer["data"]] for column in shown}
    widths = {name: max(map(len, texts)) for name, texts in cells.items()}
    needed = sum(max(len(name), width) + _APART for name, width in widths.items()) + (_BAR + _APART if barred else 0)
    short = needed > room
    table = _empty_table()
    laid: list[list[Text]] = []
    for column in shown:
        head = Text(column.name.replace("_", " ") if short else column.name)
        least = min(widths[column.name], _LEAST_WORDS) if not column.number else widths[column.name]
        table.add_column(
            head, justify="right" if column.number else "left", min_width=least if short else None, overflow="fold"
        )
        laid.append([Text(text) for text in cells[column.name]])
        if column.name == barred:
            table.add_column("", no_wrap=True)
            laid.append(_bars([finite(row.get(barred)) for row in answer["data"]], _BAR // 3 if short else _BAR))
    for row in zip(*laid, strict=True):
        table.add_row(*row)
    return table


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")


def _bars(values: Sequence[float | None], width: int) -> list[Text]:
    """A bar for each, to an eighth of a character; the longest is ``width`` long, and what is negative is red."""
    longest = max((abs(value) for value in values if value is not None), default=0.0)
    bars = []
    for value in values:
        whole, rest = divmod(round(abs(value or 0.0) / longest * width * 8), 8) if longest else (0, 0)
        style = "red" if value is not None and value < 0 else "cyan"
        bars.append(Text("█" * whole + (_EIGHTHS[rest] if rest else ""), style=style))
    return bars


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


# --- triangles -------------------------------------------------------------------------------------------------------


def _triangle(rows: Sequence[Mapping[str, Any]], x: str, y: str, series: str, shown: Sequence[Column]) -> Table:
    """A row per ``series`` and a column per ``x``, in their order; the greater ``y``, the hotter."""
    by_name = {column.name: column for column in shown}
    across = list(dict.fromkeys(row.get(x) for row in rows if row.get(y) is not None))
    cells = {(row.get(series), row.get(x)): row.get(y) for row in rows}
    greatest = max((finite(value) or 0.0 for value in cells.values()), default=0.0)
    table = _empty_table()
    table.add_column(Text(f"{series} \\ {x}"))
    for place in across:
        table.add_column(Text(by_name[x].show(place)), justify="right", no_wrap=True)
    for group in dict.fromkeys(row.get(series) for row in rows):
        heat = [_shaded(cells.get((group, place)), greatest, by_name[y]) for place in across]
        table.add_row(Text(by_name[series].show(group)), *heat)
    return table


def _shaded(value: Any, greatest: float, column: Column) -> Text:
    size = finite(value)
    if size is None:
        return Text(NOTHING, style="dim")
    heat = max(size, 0.0) / greatest if greatest else 0.0
    red, green, blue = (round(cold + (hot - cold) * heat) for cold, hot in zip(_COLD, _HOT, strict=True))
    shown = share(size) if column.show is share else column.show(value)
    return Text(f" {shown} ", style=f"white on rgb({red},{green},{blue})")
