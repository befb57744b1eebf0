"""Tables as wide as there is room: what does not fit beside the first columns stands in a further table below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from analytics_core.cli.ask_table import NOTHING, Column, finite, share

_BAR: Final = 24
_APART: Final = 3
_WORD: Final = 40
"""A word of more characters may be folded."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_COLD, _HOT = (24, 36, 58), (38, 166, 154)
_ALL: Final = "all"

Row = Mapping[str, Any]


class _Laid(NamedTuple):
    """One column as it stands in a table. ``least`` is the width below which a word or a number would be cut."""

    head: str
    cells: list[Text]
    number: bool
    least: int

    @property
    def whole(self) -> int:
        """Characters when nothing is wrapped, without the space between columns."""
        return max(len(self.head), *(cell.cell_len for cell in self.cells))


def tables(
    rows: Sequence[Row], shown: Sequence[Column], x: str, barred: str | None, room: int
) -> Iterator[RenderableType]:
    """Every row and column of ``shown``; beside the column ``barred`` a bar of its values.

    Where ``room`` (characters) is short, headings wrap at their words and the bars are short. What still does not fit
    stands in further tables, each of which begins with the columns up to ``x``. No number is cut.
    """
    whole = _laid(rows, shown, barred, _BAR)
    if _width((column.whole for column in whole), _APART) <= room:
        yield _table(whole, room, _APART)
        return
    names = [column.name for column in shown]
    keys = names.index(x) + 1 if x in names else 1
    keys += barred in names[:keys]
    short = _laid(rows, shown, barred, _BAR // 3, wrapped=True)
    yield from _bands(short[:keys], short[keys:], room, _APART)


def triangle(
    rows: Sequence[Row], shown: Sequence[Column], x: str, y: str, series: str, room: int
) -> Iterator[RenderableType]:
    """A row per ``series`` and a column per ``x``, in their order; the greater ``y``, the hotter. Beside the series
    stands what all its rows have in common. Where ``room`` is short, shares are whole percents."""
    by_name = {column.name: column for column in shown}
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get(series), []).append(row)
    heads = [Text(f"{_ALL if group is None else by_name[series].show(group)}  ") for group in groups]
    keys = [_column(f"{series} \\ {x}  ", heads)]
    for name in _common(groups, [name for name in by_name if name not in (series, x, y)]):
        shared = [Text(f"{by_name[name].show(members[0].get(name))} ") for members in groups.values()]
        keys.append(_column(f"{name} ", shared, number=by_name[name].number))
    across = list(dict.fromkeys(row.get(x) for row in rows if row.get(y) is not None))
    cells = {(row.get(series), row.get(x)): row.get(y) for row in rows}
    greatest = max((finite(value) or 0.0 for value in cells.values()), default=0.0)
    for digits in (1, 0):
        heat = [
            _column(
                f" {by_name[x].show(place)} ",
                [_shaded(cells.get((group, place)), greatest, by_name[y], digits) for group in groups],
                number=True,
            )
            for place in across
        ]
        if _width((column.least for column in (*keys, *heat)), 0) <= room:
            break
    yield from _bands(keys, heat, room, 0)


def _bands(keys: list[_Laid], rest: list[_Laid], room: int, apart: int) -> Iterator[RenderableType]:
    """``rest`` in their order, in as few tables as ``room`` needs, each behind ``keys``."""
    band: list[_Laid] = []
    for column in rest:
        if band and _width((each.least for each in (*keys, *band, column)), apart) > room:
            yield _table([*keys, *band], room, apart)
            yield ""
            band = []
        band.append(column)
    yield _table([*keys, *band], room, apart)


def _width(columns: Iterable[int], apart: int) -> int:
    return sum(width + apart for width in columns) - apart


def _table(columns: Sequence[_Laid], room: int, apart: int) -> Table:
    """What ``room`` leaves beyond the least goes to the first columns first."""
    table = Table(
        box=box.SIMPLE_HEAD if apart else None,
        padding=(0, 1) if apart else 0,
        show_edge=False,
        pad_edge=False,
        header_style="bold",
    )
    left = room - _width((column.least for column in columns), apart)
    for column in columns:
        more = min(max(left, 0), column.whole - column.least)
        left -= more
        justify: JustifyMethod = "right" if column.number else "left"
        table.add_column(Text(column.head), justify=justify, width=column.least + more, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


# --- columns ---------------------------------------------------------------------------------------------------------


def _laid(
    rows: Sequence[Row], shown: Sequence[Column], barred: str | None, bar: int, *, wrapped: bool = False
) -> list[_Laid]:
    laid = []
    for column in shown:
        head = column.name.replace("_", " ") if wrapped else column.name
        laid.append(_column(head, [Text(column.show(row.get(column.name))) for row in rows], number=column.number))
        if column.name == barred:
            bars = _bars([finite(row.get(barred)) for row in rows], bar)
            laid.append(_column("", bars))
    return laid


def _column(head: str, cells: list[Text], *, number: bool = False) -> _Laid:
    """Numbers stay on one line, words may stand below each other, and what has no spaces is folded if it is long."""
    widths = [cell.cell_len if number else min(_longest(cell.plain), _WORD) for cell in cells]
    return _Laid(head, cells, number, max(_longest(head), *widths))


def _longest(words: str) -> int:
    return max(map(cell_len, words.split()), default=0)


def _bars(values: Sequence[float | None], width: int) -> list[Text]:
    """A bar for each, to an eighth of a character; the longest is ``width`` long, and what is negative is red."""
    longest = max((abs(value) for value in values if value is not None), default=0.0)
    bars = []
    for value in values:
        whole, rest = divmod(round(abs(value or 0.0) / longest * width * 8), 8) if longest else (0, 0)
        style = "red" if value is not None and value < 0 else "cyan"
        bars.append(Text("█" * whole + (_EIGHTHS[rest] if rest else ""), style=style))
    return bars


def _common(groups: Mapping[Any, Sequence[Row]], names: Sequence[str]) -> list[str]:
    """The columns that have one value within each group; a group of nothing in particular is not looked at."""
    named = [members for group, members in groups.items() if group is not None]
    return [
        name
        for name in names
        if named and all(row.get(name) == members[0].get(name) for members in named for row in members)
    ]


def _shaded(value: Any, greatest: float, column: Column, digits: int) -> Text:
    size = finite(value)
    if size is None:
        return Text(NOTHING, style="dim")
    heat = max(size, 0.0) / greatest if greatest else 0.0
    red, green, blue = (round(cold + (hot - cold) * heat) for cold, hot in zip(_COLD, _HOT, strict=True))
    text = f"{size:.{digits}%}" if column.show is share else column.show(value)
    return Text(f" {text} ", style=f"white on rgb({red},{green},{blue})")
