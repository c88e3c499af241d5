"""Forecasts of a controller: correct values, and no use of the future except in the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl.env.dataset import build_dataset
from rl.env.forecasts import Forecast, blended, corrected, day_ahead, oracle, persistence, with_quantiles
from rl.env.region import Region, synthetic
from rl.errors import DataError

FIT = "2017-03-01T00"


def with_gaps(region: Region) -> np.ndarray:
    """A day-ahead forecast with gaps."""
    issued = region.load * 1.02
    issued[::17] = np.nan
    return issued


@pytest.fixture(scope="module")
def made() -> Region:
    return synthetic(24 * 120)[0]


def test_persistence_repeats_the_last_known_hour_of_the_day(made: Region) -> None:
    ahead = persistence(made, 50)[..., 0]
    t = 1000
    for horizon, hour in ((0, t - 24), (23, t - 1), (24, t - 24), (47, t - 1), (48, t - 24)):
        assert ahead[t, horizon] == np.float32(made.load[hour])


def test_oracle_returns_the_true_load(made: Region) -> None:
    assert_array_equal(oracle(made, 30)[500, :, 0], made.load[500:530].astype(np.float32))


def test_day_ahead_ends_with_the_operating_day(made: Region) -> None:
    """Offset -6: 00:00 local is 06:00 UTC, and the hour that starts then ends at 07:00, its label."""
    issued = np.arange(len(made.load), dtype=float)
    ahead = day_ahead(made, issued, 48)[..., 0]
    clock = made.local.astype(int) % 24
    midnight = 24 * 50 + int(np.argmax(clock[24 * 50 :] == 0))
    assert str(made.hours[midnight])[11:13] == "07"
    # At midnight the present day is known, and the next repeats it; from ten o'clock on both are known.
    assert_array_equal(ahead[midnight], midnight + np.concatenate([np.arange(24), np.arange(24)]))
    assert_array_equal(ahead[midnight + 9, :30], midnight + 9 + np.concatenate([np.arange(15), np.arange(-9, 6)]))
    assert_array_equal(ahead[midnight + 10, :38], midnight + 10 + np.arange(38))
    assert ahead[midnight + 10, 38] == midnight + 24  # the first hour of the day after takes that of tomorrow


def test_missing_day_ahead_value_becomes_persistence(made: Region) -> None:
    assert_array_equal(day_ahead(made, np.full(len(made.load), np.nan), 30), persistence(made, 30))
    with pytest.raises(DataError, match="day-ahead"):
        day_ahead(made, np.zeros(3), 30)


def test_correction_removes_a_constant_error(made: Region) -> None:
    issued = made.load + 0.05
    point = day_ahead(made, issued, 6)
    assert_allclose(
        corrected(made, point, FIT)[200:-30], oracle(made, 6)[200:-30], atol=2e-3
    )  # after a week of known errors


def test_quantiles_cover_their_share_of_loads(made: Region) -> None:
    """By hour and horizon, over the fitted hours: the share of loads below a quantile is its level."""
    rng = np.random.default_rng(0)
    issued = made.load + rng.normal(0, 0.03, len(made.load))
    levels = (0.1, 0.5, 0.9)
    quantiles = with_quantiles(made, day_ahead(made, issued, 12), FIT, levels)
    assert (np.diff(quantiles, axis=2) >= 0).all()
    stop = int(np.searchsorted(made.hours, np.datetime64(FIT, "h"))) - 12
    below = (oracle(made, 12)[48:stop] < quantiles[48:stop]).mean(axis=(0, 1))
    assert_allclose(below, levels, atol=0.02)


def everything(region: Region, issued: np.ndarray) -> Forecast:
    """Day-ahead, corrected, with quantiles."""
    point = corrected(region, day_ahead(region, issued, 40), FIT)
    return with_quantiles(region, point, FIT, (0.1, 0.5, 0.9))


@pytest.mark.parametrize(
    "make", [lambda region, _: persistence(region, 40), everything], ids=["persistence", "day-ahead"]
)
def test_no_forecast_uses_the_future(made: Region, make: Callable[[Region, np.ndarray], Forecast]) -> None:
    """Another load from hour t on does not change the forecasts made up to the start of hour t."""
    t = 2500
    assert made.hours[t] > np.datetime64(FIT, "h")
    changed = made.load.copy()
    changed[t:] += 0.3
    issued = with_gaps(made)
    before, after = make(made, issued), make(replace(made, load=changed), issued)
    assert_array_equal(before[: t + 1], after[: t + 1])
    assert (before[t + 1 :] != after[t + 1 :]).any()


def test_blend_follows_the_forecast_that_fared_better(made: Region) -> None:
    """Each of two forecasts fails for 40 days; the blend is near the better one two weeks later, and its share says by how much."""
    rng = np.random.default_rng(0)
    truth = oracle(made, 4)
    good, bad = (truth + rng.normal(0, size, truth.shape).astype(np.float32) for size in (0.01, 0.05))
    early = np.arange(len(made.load))[:, None, None] < 24 * 60
    first, second = np.where(early, good, bad), np.where(early, bad, good)
    mixed, share = blended(made, first, second)
    for days, better in (((30, 60), first), ((80, 115), second)):
        rows = slice(24 * days[0], 24 * days[1])
        assert np.abs(mixed - truth)[rows].mean() < 1.05 * np.abs(better - truth)[rows].mean()
    assert share[24 * 80 : 24 * 115].max() < 0.35 and share[24 * 30 : 24 * 60].min() > 0.9
    missing = np.where(np.arange(len(made.load))[:, None, None] == 500, np.nan, first)
    assert_array_equal(blended(made, missing, second)[0][500], second[500])
    assert_array_equal(blended(made, first, np.where(missing == first, second, np.nan))[0][500], first[500])


def test_blend_does_not_use_the_future(made: Region) -> None:
    """The error of row t and horizon h is known from row t + h + 1 on."""
    rng = np.random.default_rng(0)
    first, second = (oracle(made, 4) + rng.normal(0, 0.03, (len(made.load), 4, 1)).astype(np.float32) for _ in range(2))
    changed = made.load.copy()
    changed[1500:] += 0.3
    before, after = (blended(one, first, second) for one in (made, replace(made, load=changed)))
    for one, other in zip(before, after, strict=True):
        assert_array_equal(one[:1501], other[:1501])
        assert (one[1501] != other[1501]).any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f[:100], r"a forecast of shape \(100, 4, 1\); needed is \[hour, horizon, feature\] with 1440 hours"),
        (lambda f: f[..., 0], r"a forecast of shape \(2880, 4\)"),
        (lambda f: f * 4000, "half of the forecast is above .* reference peaks. Divide MW by the region's peak"),
    ],
)
def test_forecast_of_another_form_is_refused(
    made: Region, change: Callable[[Forecast], Forecast], problem: str
) -> None:
    """In MW it made plans that cost hundreds of times what the optimum saves, without a word."""
    data = build_dataset([made], [None], "2017-02-01T00", "2017-03-02T00")
    with pytest.raises(DataError, match=problem):
        data.gather([change(oracle(made, 4))])
    with pytest.raises(DataError, match="0 forecasts for the regions SYNTHETIC"):
        data.gather([])
