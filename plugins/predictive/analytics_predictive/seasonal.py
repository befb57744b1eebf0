"""The seasonal naive forecast: what was, one season later. No parameters, and the yardstick for all that has some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Backtest(NamedTuple):
    """Errors of forecasts from earlier origins. ``coverage`` is the share of values inside their interval."""

    origins: int
    mase: float
    smape: float
    coverage: float


def seasonal_naive(history: F64, horizon: int, season: int) -> F64:
    """The value of the last season at the same place, shape ``(horizon,)``; ``season`` 1 repeats the last value.

    :raises ValueError: when ``history`` is shorter than a season.
    """
    if len(history) < season:
        raise ValueError(f"a season of {season} needs as many values; there are {len(history)}")
    return np.resize(history[-season:], horizon)


def interval(history: F64, horizon: int, season: int, level: float) -> tuple[F64, F64]:
    """Bounds of `seasonal_naive`, each of shape ``(horizon,)``: the forecast plus the ``(1 - level) / 2`` and
    ``(1 + level) / 2`` quantiles of the past differences over as many whole seasons as the step is ahead.

    NaN where the history has fewer than 8 such differences.
    """
    point = seasonal_naive(history, horizon, season)
    low, high = np.full(horizon, np.nan), np.full(horizon, np.nan)
    ahead = np.arange(horizon) // season + 1
    for seasons in range(1, int(ahead[-1]) + 1):
        lag = seasons * season
        differences = history[lag:] - history[:-lag]
        if len(differences) < 8:
            break
        bounds = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
        here = ahead == seasons
        low[here], high[here] = point[here] + bounds[0], point[here] + bounds[1]
    return low, high


def mase(actual: F64, forecast: F64, history: F64, season: int) -> float:
    """Mean absolute scaled error (Hyndman and Koehler 2006): errors over the in-sample ones of the seasonal naive
    forecast. NaN when the history is no longer than a season or never changes."""
    scale = np.abs(history[season:] - history[:-season])
    if not len(scale) or not scale.any():
        return float("nan")
    return float(np.abs(actual - forecast).mean() / scale.mean())


def smape(actual: F64, forecast: F64) -> float:
    """Symmetric mean absolute percentage error in per cent, 0 to 200, as in the M4 competition; two zeros err by 0."""
    total = np.abs(actual) + np.abs(forecast)
    error = np.abs(actual - forecast)
    return float(200 * np.divide(error, total, out=np.zeros(len(total)), where=total > 0).mean())


def backtest(history: F64, horizon: int, season: int, level: float, most: int = 10) -> Backtest | None:
    """Forecast again from up to ``most`` earlier origins, each with the values before it alone.

    Origins lie ``horizon`` apart from the end backwards and have two seasons before them. None when there is none.
    """
    origins = [len(history) - horizon * (n + 1) for n in range(most)]
    origins = [origin for origin in origins if origin >= 2 * season + 1]
    if not origins:
        return None
    errors, scaled, inside = [], [], []
    for origin in origins:
        past, actual = history[:origin], history[origin : origin + horizon]
        point = seasonal_naive(past, horizon, season)
        low, high = interval(past, horizon, season, level)
        errors.append(smape(actual, point))
        scaled.append(mase(actual, point, past, season))
        known = np.isfinite(low)
        inside.append(((actual >= low) & (actual <= high))[known])
    hits = np.concatenate(inside)
    finite = [value for value in scaled if np.isfinite(value)]
    return Backtest(
        len(origins),
        float(np.mean(finite)) if finite else float("nan"),
        float(np.mean(errors)),
        float(hits.mean()) if len(hits) else float("nan"),
    )
