"""The analysis ``forecast``: a metric's next values, with how wrong such forecasts have been."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Series
from analytics_predictive.calendar import following
from analytics_predictive.seasonal import F64, Backtest, backtest, interval, seasonal_naive

SEASONS = {"minute": 60, "hour": 24, "day": 7, "week": 52, "month": 12}
_SCHEMA = pa.schema(
    [
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("forecast", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
    ]
)


class Asked(NamedTuple):
    metric: str
    horizon: int
    interval: str
    season: int
    level: float


def forecast(
    events: EventReader,
    metric: str,
    horizon: int = 14,
    interval: str = "day",
    season: int | None = None,
    level: float = 0.8,
) -> Answer:
    """The next ``horizon`` buckets of ``metric`` after the last whole one of the range, by `seasonal_naive`.

    ``season`` is in buckets; None takes that of the interval (60 minutes, 24 hours, 7 days, 52 weeks, 12 months), or
    1 when the history is shorter than two of them. ``lower`` and ``upper`` bound ``level`` of the past differences;
    they are null where the history has too few. The insight ``backtest`` has the errors (MASE, sMAPE) of the same
    method from earlier origins. Values that are missing are taken as unknown: the history begins after the last one.

    Columns: timestamp (beginning of the bucket, UTC), forecast, lower, upper; no rows when the history is too short.

    :raises ValueError: for an unknown interval.
    """
    if interval not in SEASONS:
        raise ValueError(f"interval {interval!r}; valid are: {', '.join(SEASONS)}")
    at, values = _whole(events.metric(metric, interval), events.range.end)
    fitting = season or SEASONS[interval]
    if season is None and len(values) < 2 * fitting:
        fitting = 1
    asked = Asked(metric, horizon, interval, fitting, level)
    needed = max(fitting + 1, 3)
    if len(values) < needed:
        return Answer(_SCHEMA.empty_table(), [_too_short(asked, len(values), needed)])
    return _answer(asked, at, values, events.range.timezone, chosen=season is None)


def _whole(series: Series, end: datetime) -> tuple[np.typing.NDArray[np.int64], F64]:
    """The buckets that are over by ``end`` and follow the last unknown value."""
    at, values = np.asarray(series.at, np.int64), np.asarray(series.values, np.float64)
    if len(at):
        # The last bucket has no next edge; its length is that of its interval.
        over = np.append(at[1:], at[-1] + series.step_seconds * 1_000_000) <= int(end.timestamp() * 1e6)
        at, values = at[over], values[over]
    unknown = np.flatnonzero(~np.isfinite(values))
    first = int(unknown[-1]) + 1 if len(unknown) else 0
    return at[first:], values[first:]


def _answer(asked: Asked, at: np.typing.NDArray[np.int64], values: F64, timezone: str, *, chosen: bool) -> Answer:
    point = seasonal_naive(values, asked.horizon, asked.season)
    low, high = interval(values, asked.horizon, asked.season, asked.level)
    last = datetime.fromtimestamp(int(at[-1]) / 1e6, UTC)
    table = pa.table(
        {
            "timestamp": pa.array(following(last, asked.interval, timezone, asked.horizon), _SCHEMA.field(0).type),
            "forecast": point,
            "lower": pa.array(low, from_pandas=True),
            "upper": pa.array(high, from_pandas=True),
        },
        schema=_SCHEMA,
    )
    insights = [_told(asked, backtest(values, asked.horizon, asked.season, asked.level), len(values))]
    if chosen and asked.season != SEASONS[asked.interval]:
        insights.append(_no_season(asked, len(values)))
    return Answer(table, insights, (), Chart(kind="line", x="timestamp", y=("forecast", "lower", "upper")))


def _told(asked: Asked, tested: Backtest | None, length: int) -> Insight:
    if tested is None:
        return Insight(
            key="backtest",
            title="How good this forecast is cannot be told",
            description=f"{length} past values leave no earlier origin from which {asked.horizon} steps could be "
            f"checked; {2 * asked.season + 1 + asked.horizon} would.",
            severity="low",
            data={"values": length, "season": asked.season},
        )
    figures = {"mase": tested.mase, "smape": tested.smape, "coverage": tested.coverage}
    told = [f"sMAPE {tested.smape:.1f} %"]
    if np.isfinite(tested.mase):
        told.append(f"MASE {tested.mase:.2f}")
    if np.isfinite(tested.coverage):
        told.append(f"{tested.coverage:.0%} of the values inside the interval meant for {asked.level:.0%}")
    return Insight(
        key="backtest",
        title=f"Such forecasts of {asked.metric} were off by {tested.smape:.0f} % (sMAPE)",
        description=f"Forecast again from {tested.origins} earlier origins, {asked.horizon} steps each: "
        f"{', '.join(told)}.",
        data={
            "origins": tested.origins,
            "season": asked.season,
            "values": length,
            **{name: value for name, value in figures.items() if np.isfinite(value)},
        },
    )


def _no_season(asked: Asked, length: int) -> Insight:
    usual = SEASONS[asked.interval]
    return Insight(
        key="season",
        title="The forecast repeats the last value",
        description=f"{length} past values are fewer than two seasons of {usual}, so no season can be seen in them.",
        severity="low",
        data={"values": length, "needed": 2 * usual},
    )


def _too_short(asked: Asked, length: int, needed: int) -> Insight:
    return Insight(
        key="history-too-short",
        title="The history is too short for a forecast",
        description=f"{asked.metric} has {length} whole buckets of a {asked.interval} in the range; a season of "
        f"{asked.season} needs {needed}. Ask over a longer range or a shorter interval.",
        severity="low",
        data={"values": length, "needed": needed},
    )
