"""The outlier rule for demand and its forecast: which values are masked, and which are kept and flagged. No I/O, deterministic.

A value is compared with the usual value of its hour: the median of the same hour of day over the 7 days before and after. Where a bad spell
fills that window, the year's own median of the hour decides. Masked are values that nothing explains:

1. *bounds*: |value| above 1,000,000 MWh or above 4 × the respondent's level; below zero.
2. *flat*: the third and later of 12 or more equal values, in a series where at most one hour in five repeats its
   predecessor outside such runs, and at most half of the hours are in them.
3. *anchor*: outside 0.2…4 × the year's median of the hour; zero.
4. *level*: outside 0.3…2.5 × the usual value, and more than 3 robust deviations (1.4826 × MAD) of the same hours from it.
   For 3 and 4 by more than 50 MWh, except zero.
5. *spike*: a single hour beyond the range of its valid neighbours (two hours either side, at least one on each side) by more than
   0.2 × the usual value, 3 robust deviations, and 50 MWh.

A spell of 3 or 4 is kept and flagged where it comes and goes within what an outage, a storm and its repair do: no hour-to-hour change, from before
it until after it, exceeds 0.4 × the usual value; or, inside the anchor, where the other series (forecast for demand, demand for forecast) is
within 20 %.
Flagged as suspect and kept, since one series alone can't tell a fault from an event:

- *departure*: from the usual value, scaled by its ratio over the surrounding two days, by more than 2.2 (below) or 3.2 (above) interquartile ranges of
  demand less its two-day median, over ten days;
- *notch*: the relative departure is beyond that of both neighbours by 0.04 and by 3 interquartile ranges of its hourly changes;
- *step*: the ratio to the usual value changes by 0.2 and 8 such ranges within an hour, and back within five days;
- *repeat*: 5 to 11 equal values in such a series, where the year's medians of these hours differ by more than 5 %; the first two of a flat run;
- *region*: hours between such hours, where a window of two days has 8 of them; a stretch of more than a day without any is left alone.

A departure or notch that the other series has too, to within half, is not flagged. The thresholds are chosen on the labels of 2015–2021 of Ruggles et al.
(2020) and judged on those of 2022 and 2023: docs/reference/outliers.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ingest.array_types import Bools, Floats, Int64s

DAY = 24  # hours
DAYS = 7  # on each side, for the usual value
MIN_VALID = 5  # same-hour values that a test needs
FLOOR = 50.0  # MWh: the least difference that masks a value
FLAT = 12  # equal values
CHANCE, MOST = (
    0.2,
    0.5,
)  # shares of hours that repeat their predecessor outside such runs, and of hours in them, above which runs are no fault
REPEAT, REPEAT_RANGE = 5, 0.05  # equal values that are suspect; relative range of the year's medians over them
PAIR = 3  # equal values that count for a region
ANCHOR_LOW, ANCHOR_HIGH = 0.2, 4.0  # × the year's median of the hour
LEVEL_LOW, LEVEL_HIGH = 0.3, 2.5  # × the usual value
MADS = 3.0  # robust deviations
SPIKE_SHARE = 0.2  # × the usual value
NEIGHBOURS = 2  # hours on each side, for a spike
SMOOTH_STEP = 0.4  # × the usual value: the largest hourly change of a storm; of the labelled ones, 0.31
SHOULDER, REACH, HOLE = 0.8, 240, 3  # × the usual value; hours of fall or recovery; hours between two valid values
CONFIRMED = 0.2  # relative difference to the other series
LOCAL_HOURS, LOCAL_STEP, LOCAL_VALID = (
    24,
    3,
    8,
)  # on each side, for the two-day median; taken every 3 hours; valid values needed
RANGE_HOURS = 120  # on each side, for interquartile ranges; taken once a day
DEPARTURE_LOW, DEPARTURE_HIGH = 2.2, 3.2  # interquartile ranges
NOTCH_RANGES = 3.0
LEAST_SHARE = 0.04  # × the expected value: no smaller departure or notch is flagged
STEP_SHARE, STEP_RANGES, STEP_HOURS = 0.2, 8.0, 120
EXPLAINED = 0.5  # share of a departure that may remain against the other series
REGION_HOURS, REGION_COUNT = 24, 8  # on each side; doubtful hours among them
PLAUSIBLE = 10.0  # × the usual value: ratios beyond it do not enter medians and ranges

Statistic = Callable[[Floats, int], Floats]  # of the rows of [window, hour]; valid values needed → [window]


@dataclass(frozen=True)
class LoadVerdict:
    """Both arrays are bool [hour] and have no cell in common; neither has a cell without a value."""

    masked: Bools
    suspect: Bools


def judge_load(values: Floats, other: Floats | None, bound: float) -> LoadVerdict:
    """Judge the hours of one respondent's demand, or of its forecast.

    Args:
        values: MWh, float64 [hour], NaN where there is no value; a year, or less.
        other: the forecast of a demand, the demand of a forecast, over the same hours; None where there is none.
        bound: |value| above which a value is masked, MWh.

    Returns:
        The hours to mask, and those to flag.
    """
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        bad = (np.abs(values) > bound) | (values < 0)
        left = np.where(bad, np.nan, values)
        anchor = _year_median(np.where(left > 0, left, np.nan))
        flat, suspect, doubtful = _repeats(left, anchor)
        masked = bad | flat
        out, kept, usual = _out_of_level(np.where(flat, np.nan, left), anchor, other)
        masked |= out
        masked |= _spikes(np.where(masked, np.nan, values))
        suspect |= kept
        flagged, explained = _departures(np.where(masked, np.nan, values), usual, other)
        suspect |= flagged
        beside = masked.copy()  # the hours next to a masked one may hold a part of its fault
        beside[1:] |= masked[:-1]
        beside[:-1] |= masked[1:]
        suspect |= _regions(doubtful | suspect | explained, masked, beside)
    return LoadVerdict(masked & present, suspect & ~masked & present)


def _year_median(values: Floats) -> Floats:
    """Return the median of all values of the same hour of day, for each hour."""
    whole = np.concatenate([values, np.full(-values.size % DAY, np.nan)])
    return np.tile(_median(whole.reshape(-1, DAY).T), whole.size // DAY)[: values.size]


def _repeats(values: Floats, anchor: Floats) -> tuple[Bools, Bools, Bools]:
    """Return the hours of flat runs to mask, the suspect ones of runs, and those that count for a region."""
    same = np.zeros(values.size, np.bool_)
    same[1:] = (values[1:] == values[:-1]) & (values[1:] != 0)  # zeros are the anchor's
    flat, suspect, doubtful = (np.zeros(values.size, np.bool_) for _ in range(3))
    starts, stops = _runs(same)
    lengths = stops - starts + 1
    valid = np.count_nonzero(~np.isnan(values))
    if (lengths[lengths < FLAT] - 1).sum() > CHANCE * valid or lengths[lengths >= FLAT].sum() > MOST * valid:
        return flat, suspect, doubtful  # a load that is level repeats its values
    for start, length in zip(starts - 1, lengths, strict=True):
        later = slice(start + 2, start + length)
        doubtful[later] = length >= PAIR
        if length >= FLAT:
            flat[later], suspect[start : start + 2] = True, True
        elif length >= REPEAT:
            suspect[later] = _varies(anchor[start : start + length])
    return flat, suspect, doubtful


def _varies(anchor: Floats) -> bool:
    """Return whether the year's medians of some hours differ."""
    usual = anchor[~np.isnan(anchor)]
    return bool(usual.size and usual.max() - usual.min() > REPEAT_RANGE * usual.max())


def _out_of_level(values: Floats, anchor: Floats, other: Floats | None) -> tuple[Bools, Bools, Floats]:
    """Return the hours outside anchor or level to mask, those to keep and flag, and the usual value of each hour."""
    far = ((values < ANCHOR_LOW * anchor) | (values > ANCHOR_HIGH * anchor)) & (np.abs(values - anchor) > FLOOR)
    zero = (values == 0) & (anchor > 0)
    near = np.where(far | zero, np.nan, values)
    usual = usual_values(near)
    usual = np.where(np.isnan(usual), anchor, usual)
    ratio = values / usual
    out = ((ratio < LEVEL_LOW) | (ratio > LEVEL_HIGH)) & (np.abs(values - usual) > FLOOR)
    out |= far | zero
    kept = np.zeros(values.size, np.bool_)
    at = np.flatnonzero(out & ~zero)
    middle, spread = _spread(near, at)
    tame = at[np.abs(values[at] - middle) <= MADS * spread]
    out[tame], kept[tame] = False, True
    closeness = (
        np.abs(values / np.where(other > 0, other, np.nan) - 1) if other is not None else np.full_like(values, np.nan)
    )
    for low in (True, False):
        for start, stop in zip(*_runs(out & ((ratio < 1) == low)), strict=True):
            difference = np.where(np.isnan(closeness[start:stop]), np.inf, closeness[start:stop])
            shared = not far[start:stop].any() and np.median(difference) < CONFIRMED
            kept[start:stop] |= shared or _is_smooth(values, usual, start, stop, low)
    return out & ~kept, kept, usual


def _is_smooth(values: Floats, usual: Floats, start: int, stop: int, low: bool) -> bool:
    """Return whether a spell begins and ends without an hourly change that no storm makes. One at either end of the year is not smooth."""

    def is_shoulder(hour: int) -> bool:
        ratio = values[hour] / usual[hour]
        return bool(np.isnan(ratio) or (ratio < SHOULDER if low else ratio > 1 / SHOULDER))

    before, after = start - 1, stop
    while before > 0 and start - before <= REACH and is_shoulder(before):
        before -= 1
    while after < values.size - 1 and after - stop < REACH and is_shoulder(after):
        after += 1
    if before < 0 or after >= values.size or is_shoulder(before) or is_shoulder(after):
        return False
    valid = before + np.flatnonzero(~np.isnan(values[before : after + 1]))
    steps = np.abs(np.diff(values[valid])) / usual[valid[1:]]
    return bool(np.diff(valid).max() <= HOLE and (steps <= SMOOTH_STEP).all())


def usual_values(values: Floats) -> Floats:
    """Return the median of the same hour of day over the days before and after each hour, MWh [hour]; NaN where too few are valid."""
    return _median(_same_hours(values, np.arange(values.size)))


def _spikes(values: Floats) -> Bools:
    """Return the single hours that stand out from their neighbours."""
    beyond = excess(values)
    lone = np.flatnonzero(beyond > FLOOR)
    middle, spread = _spread(values, lone)
    found = np.zeros(values.size, np.bool_)
    found[lone] = beyond[lone] > np.maximum(SPIKE_SHARE * middle, MADS * spread)
    return found


def _departures(values: Floats, usual: Floats, other: Floats | None) -> tuple[Bools, Bools]:
    """Return the hours that are suspect, and those that would be but for the other series."""
    ratio = values / usual
    ratio[~((ratio > 0) & (ratio < PLAUSIBLE))] = np.nan
    local = _strided(ratio, LOCAL_HOURS, LOCAL_STEP, _median, LOCAL_VALID)
    expected = usual * np.where(np.isnan(local), 1.0, local)
    relative = np.where(np.isnan(ratio), np.nan, values / expected - 1)
    shape = values - _strided(values, LOCAL_HOURS, LOCAL_STEP, _median, LOCAL_VALID)
    departure = relative * expected / _strided(shape, RANGE_HOURS, DAY, _interquartile, DAY)
    changes = np.diff(relative, prepend=np.nan)
    jitter = _strided(changes, RANGE_HOURS, DAY, _interquartile, DAY)
    after = np.append(-changes[1:], np.nan)
    notch = np.where(changes * after > 0, np.minimum(np.abs(changes), np.abs(after)), 0.0)
    found = ((departure < -DEPARTURE_LOW) | (departure > DEPARTURE_HIGH)) & (np.abs(relative) > LEAST_SHARE)
    found |= (notch > LEAST_SHARE) & (notch > NOTCH_RANGES * jitter)
    shared = np.zeros(values.size, np.bool_)
    if other is not None:
        against = np.abs(values - np.where(other > 0, other, np.nan))
        shared = found & (against < EXPLAINED * np.abs(relative) * expected)
    return (found & ~shared) | _steps(ratio, jitter), shared


def _steps(ratio: Floats, jitter: Floats) -> Bools:
    """Return the valid hours between two opposite steps of the ratio to the usual value, where the ratio between them is the odd one."""
    found = np.zeros(ratio.size, np.bool_)
    valid = np.flatnonzero(~np.isnan(ratio))
    if valid.size < 2:
        return found
    held = ratio[valid]
    change = np.diff(held, prepend=held[0])
    change[1:][np.diff(valid) > HOLE] = 0.0
    steps = np.flatnonzero(np.abs(change) > np.fmax(STEP_SHARE, STEP_RANGES * jitter[valid]))
    for start, stop in pairwise(steps):
        if change[start] * change[stop] < 0 and valid[stop] - valid[start] <= STEP_HOURS:
            around = np.concatenate([held[max(0, start - DAY) : start], held[stop : stop + DAY]])
            if abs(np.median(held[start:stop]) - 1) > abs(np.median(around) - 1) + STEP_SHARE / 2:
                found[valid[start:stop]] = True
    return found


def _regions(doubtful: Bools, masked: Bools, beside: Bools) -> Bools:
    """Return the hours of regions: near the centre of a window with many doubtful or masked hours, and in no long stretch without."""
    region = _count(_count(doubtful | masked | beside) >= REGION_COUNT) > 0
    for start, stop in zip(*_runs(~(doubtful | masked)), strict=True):
        if stop - start > REGION_HOURS:
            region[start:stop] = False
    return region


def _count(hours: Bools) -> Int64s:
    """Return the number of true hours within `REGION_HOURS` of each."""
    total = np.concatenate([[0], np.cumsum(hours)])
    at = np.arange(hours.size)
    return total[np.minimum(at + REGION_HOURS + 1, hours.size)] - total[np.maximum(at - REGION_HOURS, 0)]


def _runs(hours: Bools) -> tuple[Int64s, Int64s]:
    """Return the first hour of each run of true, and the hour after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hours.view(np.int8), [0]])))
    return edges[::2], edges[1::2]


def _spread(values: Floats, at: Int64s) -> tuple[Floats, Floats]:
    """Return median and robust deviation of the same hours around each hour `at`."""
    near = _same_hours(values, at)
    middle = _median(near)
    return middle, 1.4826 * _median(np.abs(near - middle[:, None]))


def _same_hours(values: Floats, at: Int64s) -> Floats:
    """Return the values of the same hour of day within `DAYS` of each hour `at`: [at, 2 DAYS + 1], NaN where there is none."""
    reach = DAY * DAYS
    return np.pad(values, reach, constant_values=np.nan)[at[:, None] + np.arange(0, 2 * reach + 1, DAY)]


def _strided(values: Floats, half: int, step: int, statistic: Statistic, least: int) -> Floats:
    """Return a statistic of the hours within `half` of every `step`-th hour, held for the `step` hours that begin there."""
    windows = sliding_window_view(np.pad(values, half, constant_values=np.nan), 2 * half + 1)[::step]
    return np.repeat(statistic(windows, least), step)[: values.size]


def _median(near: Floats, least: int = MIN_VALID) -> Floats:
    """Return the median of the valid values of each row; NaN with fewer than `least` of them."""
    ordered, counts, rows = _ordered(near)
    low, high = (
        ordered[rows, np.maximum(counts - 1, 0) // 2],
        ordered[rows, np.minimum(counts, ordered.shape[1] - 1) // 2],
    )
    return np.where(counts >= least, (low + high) / 2, np.nan)


def _interquartile(near: Floats, least: int) -> Floats:
    """Return the difference of the quartiles of the valid values of each row, both actual values; NaN with fewer than `least` of them."""
    ordered, counts, rows = _ordered(near)
    last = np.maximum(counts - 1, 0)
    return np.where(counts >= least, ordered[rows, last * 3 // 4] - ordered[rows, last // 4], np.nan)


def _ordered(near: Floats) -> tuple[Floats, Int64s, Int64s]:
    """Return each row in order, NaN last, the number of its valid values, and the numbers of the rows."""
    ordered = np.sort(near, axis=-1)
    counts = np.full(len(ordered), ordered.shape[1])
    partial = np.flatnonzero(np.isnan(ordered[:, -1]))  # few: counting all would take as long as sorting them
    counts[partial] = np.count_nonzero(~np.isnan(ordered[partial]), axis=-1)
    return ordered, counts, np.arange(len(ordered))


def excess(values: Floats) -> Floats:
    """Return the distance of each hour beyond the range of its valid neighbours; NaN where one side has none."""
    padded = np.pad(values, NEIGHBOURS, constant_values=np.nan)
    before = [padded[shift : shift + values.size] for shift in range(NEIGHBOURS)]
    after = [padded[NEIGHBOURS + shift : NEIGHBOURS + shift + values.size] for shift in range(1, NEIGHBOURS + 1)]
    high = np.fmax.reduce([*before, *after])
    low = np.fmin.reduce([*before, *after])
    both = ~np.isnan(np.fmax.reduce(before)) & ~np.isnan(np.fmax.reduce(after))
    return np.where(both, np.maximum(values - high, low - values), np.nan)
