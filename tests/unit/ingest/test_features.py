"""Tokens: no leak of later values, bounds, and values that match their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.features import (
    COLUMNS,
    CONDITION,
    FEATURES,
    MEMORY_LAG,
    MIN_SCALE,
    TRAILING,
    Reference,
    cut,
    load_tokens,
    make_tokens,
)
from ingest.loader import SeriesArrays
from ingest.publication import DAY_BEFORE, DEADLINE, Publication
from ingest.quality import MISSING, OK
from tests.support.data_folder import build_all, commit, shard

FIRST = hour_number("2018-01-01T00")
HOURS = 24 * 200


def series(seed: int = 0, hours: int = HOURS, holes: float = 0.02) -> SeriesArrays:
    draw = np.random.default_rng(seed)
    t = np.arange(hours)
    demand = 1000 + 200 * np.sin(2 * np.pi * t / 24) + 80 * np.sin(2 * np.pi * t / 168) + draw.normal(0, 30, hours)
    forecast = demand + draw.normal(10, 40, hours)
    sun = np.maximum(0, 300 * np.sin(2 * np.pi * (t - 6) / 24)) * draw.uniform(0.3, 1, hours)
    values = np.stack([demand, forecast, sun], axis=1).astype(np.float32)
    mask = draw.random(values.shape) > holes
    stamps = (FIRST + t).astype("datetime64[h]").astype("datetime64[s]")
    values[~mask] = np.nan
    reason = np.where(mask, OK, MISSING).astype(np.int8)
    return SeriesArrays(values, mask, reason, stamps, ("PACW.D", "PACW.DF", "PACW.NG.SUN"))


def poisoned(clean: SeriesArrays, known: np.ndarray, published: np.ndarray) -> SeriesArrays:
    """Return `clean` with wrong actual values (D, fuels) outside `known` and wrong DF outside `published`."""
    values, mask = clean.values.copy(), clean.mask.copy()
    values[~known, 0], values[~known, 2], values[~published, 1] = 9e5, -7e5, 5e5
    mask[~known, 0], mask[~published, 1] = True, True
    return SeriesArrays(values, mask, clean.reason, clean.hours, clean.names)


PUBLICATIONS = (DAY_BEFORE, DEADLINE, Publication(3, -1, 16, "America/New_York"))


@settings(max_examples=25)
@given(
    st.integers(0, 1000),
    st.integers(60, 199),
    st.sampled_from(["DF", "week"]),
    st.sampled_from(PUBLICATIONS),
    st.sampled_from([10, 5, 16, 23]),
)
def test_no_value_after_issue_time_reaches_a_token(
    seed: int, day: int, reference: Reference, publication: Publication, issue_hour: int
) -> None:
    """With every actual value and DF that is not known at a day's issue time changed, all tokens up to its end are equal."""
    clean = series(seed, hours=24 * (day + 3))
    options: dict[str, Any] = {"reference": reference, "publication": publication, "issue_hour": issue_hour}
    tokens = make_tokens("PACW", clean, **options)
    calendar = tokens.calendar
    target = calendar.day[0] + day
    own = np.flatnonzero(calendar.day == target)[0]
    issue, published = calendar.issue[own], calendar.published[own]
    upto = calendar.day <= target
    spoilt = make_tokens("PACW", poisoned(clean, tokens.hours <= issue, tokens.hours <= published), **options)
    for name in ("features", "condition", "reference", "scale"):
        np.testing.assert_array_equal(getattr(tokens, name)[upto], getattr(spoilt, name)[upto], err_msg=name)
    # A model's memory at an hour is MEMORY_LAG hours old, which is never after the issue time.
    assert (tokens.hours - MEMORY_LAG <= calendar.issue).all()
    remembered = tokens.hours[upto] - MEMORY_LAG <= issue
    assert remembered.all()


@pytest.mark.parametrize("publication", [DAY_BEFORE, DEADLINE])
def test_hours_without_a_known_forecast_start_from_history(publication: Publication) -> None:
    """DF of a day is missing; or that of every day comes after the issue time."""
    clean = series(3, hours=24 * 120, holes=0)
    clean.values[2400:2424, 1], clean.mask[2400:2424, 1] = np.nan, False
    tokens = make_tokens("PACW", clean, publication=publication)
    own = np.isfinite(tokens.reference) & (tokens.reference != tokens.operator)
    error = np.abs(tokens.demand - tokens.reference)
    if publication == DEADLINE:
        assert own[24 * 60 :].all()
        assert np.isnan(tokens.reference[:24]).all()
    else:
        assert own.nonzero()[0].tolist() == list(range(2400, 2424))
    week = np.abs(tokens.demand[168:] - tokens.demand[:-168])
    assert error[2400:2424].mean() < 1.3 * week[2232:2256].mean()


def test_actual_values_that_come_too_late_for_the_memory_are_refused() -> None:
    with pytest.raises(UsageError, match="does not know the whole day before"):
        make_tokens("PACW", series(), publication=Publication(8, -1, 3, "local"), issue_hour=4)


def test_changed_values_reach_later_tokens() -> None:
    """The test above can fail: the tokens of the next day do change."""
    clean = series()
    tokens = make_tokens("PACW", clean)
    calendar = tokens.calendar
    target = calendar.day[0] + 100
    issue = calendar.issue[calendar.day == target][0]
    spoilt = make_tokens("PACW", poisoned(clean, tokens.hours <= issue, calendar.day <= target))
    later = calendar.day == target + 1
    assert (tokens.features[later] != spoilt.features[later]).any()


def test_target_and_reference_reconstruct_demand() -> None:
    tokens = make_tokens("PACW", series())
    there = np.isfinite(tokens.target)
    assert there.mean() > 0.9
    np.testing.assert_allclose(
        (tokens.reference + tokens.target * tokens.scale)[there], tokens.demand[there], rtol=1e-5
    )


def test_week_reference_does_not_read_df() -> None:
    clean = series()
    values, mask = clean.values.copy(), clean.mask.copy()
    values[:, 1], mask[:, 1] = np.nan, False
    without = SeriesArrays(values, mask, clean.reason, clean.hours, clean.names)
    one, two = (make_tokens("PACW", s, reference="week") for s in (clean, without))
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.reference[168:], clean.values[:-168, 0])


def test_lagged_features_match_their_names() -> None:
    clean = series(holes=0.0)
    tokens = make_tokens("PACW", clean)
    t = 24 * 150 + 3  # 3:00 UTC = 18:00 or 19:00 local: 24 h before is after the issue time, 48 h is not
    error = (clean.values[:, 0] - clean.values[:, 1]).astype(float)
    column = {name: tokens.features[t, i] for i, name in enumerate(FEATURES)}
    issue = tokens.calendar.issue[t] - tokens.hours[0]
    assert column["error.24"] == 0 and column["missing.24"] == 1
    assert column["error.48"] == pytest.approx(error[t - 48] / tokens.scale[t], rel=1e-4)
    assert column["error.issue-0"] == pytest.approx(error[issue] / tokens.scale[t], rel=1e-4)
    assert column["error.mean-24"] == pytest.approx(error[issue - 23 : issue + 1].mean() / tokens.scale[t], rel=1e-3)
    scale = np.abs(error[issue + 1 - TRAILING : issue + 1]).mean()
    assert tokens.scale[t] == pytest.approx(scale, rel=1e-5) and scale > MIN_SCALE * 1000


def test_tokens_of_a_part_equal_the_cut_of_the_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for year in (2022, 2023):
        one = shard(start=f"{year}-01-01T00", end=f"{year}-12-31T23")
        wave = 2000 + 300 * np.sin(np.arange(one.hours) / 24 * 2 * np.pi)
        demand = np.round(wave + draw.normal(0, 20, one.hours))
        commit(tmp_path, one, {"D": demand, "DF": np.round(demand + draw.normal(5, 30, one.hours))})
    build_all(tmp_path)
    whole = load_tokens(tmp_path, "PACW", "2022-01-01T00", "2023-12-31T23")
    part = load_tokens(tmp_path, "PACW", "2023-06-01T00", "2023-06-30T23")
    same = cut(whole, hour_number("2023-06-01T00"), hour_number("2023-06-30T23"))
    assert len(part.hours) == 720
    for name in ("hours", "features", "condition", *COLUMNS):
        np.testing.assert_allclose(getattr(part, name), getattr(same, name), atol=1e-5, err_msg=name)
    assert part.features.shape[1] == len(FEATURES) and part.condition.shape[1] == len(CONDITION)
    with pytest.raises(UsageError, match="no series of ERCO"):
        load_tokens(tmp_path, "ERCO", "2023-01-01T00", "2023-01-31T23")
