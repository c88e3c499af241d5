"""Tokens of a forecast: nothing from after the issue time reaches it; segments depend on seed and step alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from ingest.features import CONDITION, FEATURES, make_tokens
from ingest.publication import DAY_BEFORE, DEADLINE, Publication, known_at
from ringattn.layout import Layout
from tests.unit.ingest.test_features import poisoned, series
from worker.forecast.model.network import Forecaster, ModelConfig
from worker.forecast.predict import in_time
from worker.training.data import build_local_batch
from worker.training.segments import draw_segments, groups_of, segment_of
from worker.training.tokens import Normalisation, Period, Piece, TokenStore, token_rows


def model(respondents: int, scope: str) -> Forecaster:
    """Random weights, so that every input matters."""
    mx.random.seed(3)
    shape = ModelConfig(len(FEATURES), len(CONDITION), respondents, context=24 * 60, dim=16, hidden=16, scope=scope)
    made = Forecaster(shape)
    made.head.weight = mx.random.normal(made.head.weight.shape)
    return made


@pytest.mark.parametrize(
    ("names", "scope", "day", "publication"),
    [
        (("PACW",), "own", 90, DAY_BEFORE),
        (("PACW",), "own", 137, DEADLINE),
        (("PACW",), "own", 180, DAY_BEFORE),
        # East and west, before and with daylight saving.
        (("PACW", "NYIS", "AZPS"), "all", 60, DAY_BEFORE),
        (("PACW", "NYIS", "AZPS"), "all", 137, DEADLINE),
        (("PACW", "NYIS", "AZPS"), "all", 137, DAY_BEFORE),
        (("PACW", "CISO"), "zone", 137, DAY_BEFORE),
    ],
)
def test_forecasts_use_nothing_after_their_issue_time(
    names: tuple[str, ...], scope: str, day: int, publication: Publication
) -> None:
    """Everything after the first respondent's issue time is poisoned, in the series of every authority."""
    raw = {name: series(day + 1000 * i) for i, name in enumerate(names)}
    clean = {name: make_tokens(name, series_, publication=publication) for name, series_ in raw.items()}
    calendar = clean[names[0]].calendar
    target = calendar.day[0] + day
    issue = calendar.issue[calendar.day == target][0]
    moment = np.array([issue + publication.actual_hours])
    spoilt = {}
    for name, tokens in clean.items():
        known = tokens.hours <= issue, tokens.hours <= known_at(name, moment, publication).forecast
        spoilt[name] = make_tokens(name, poisoned(raw[name], *known), publication=publication)
    norm = Normalisation(
        np.zeros(len(FEATURES) + len(CONDITION), np.float32), np.ones(len(FEATURES) + len(CONDITION), np.float32)
    )
    forecaster = model(len(names), scope)
    quantiles = []
    for by_name in (clean, spoilt):
        maps = tuple((int(one.hours[0]), token_rows(one)) for one in by_name.values())
        store = TokenStore(names, "DF", maps)
        whole = Period(int(calendar.hours[0]), int(calendar.hours[-1]))
        segment = segment_of(store, [Piece(i, whole.first, len(calendar.hours)) for i in range(len(names))])
        ring = Layout("contiguous")
        local = build_local_batch(store, [segment], norm, layout=ring, size=1, rank=0, scored=whole, region=0)
        of_first = in_time(np.array(forecaster(local.batch)), local.regions[0] == 0)
        hours = in_time(local.hours, local.regions[0] == 0)
        quantiles.append(of_first[(hours >= whole.first) & (hours <= whole.last)])
    upto = calendar.day <= target
    np.testing.assert_array_equal(quantiles[0][upto], quantiles[1][upto])
    assert (quantiles[0][~upto] != quantiles[1][~upto]).any()
    assert (np.diff(quantiles[0], axis=1) >= 0).all()


def test_segments_depend_on_seed_and_step_and_have_a_target() -> None:
    rows = np.full((5000, len(FEATURES) + len(CONDITION) + 5), np.nan, np.float32)
    rows[3000:3005] = 1.0
    store = TokenStore(("PACW", "ERCO", "CISO"), "DF", ((0, rows), (0, np.ones_like(rows)), (0, np.ones_like(rows))))
    period = Period(100, 4900)
    for step in range(50):
        segments = draw_segments(store, groups_of(store.respondents, "own"), period, 700, 4, seed=1, step=step)
        assert segments == draw_segments(store, groups_of(store.respondents, "own"), period, 700, 4, seed=1, step=step)
        pieces = [piece for segment in segments for piece in segment.pieces]
        assert {piece.region for piece in pieces} == {0, 1, 2} and len(pieces) == 4
        for piece in pieces:
            assert piece.first >= 100 and piece.first + piece.hours - 1 <= 4900
            assert piece.region or piece.first <= 3004 < piece.first + piece.hours + 4
    groups = groups_of(store.respondents, "zone")
    assert groups == [(0, 2), (1,)]
    assert draw_segments(store, groups, period, 700, 3, 1, 1) != draw_segments(store, groups, period, 700, 3, 2, 1)
    (segment,) = draw_segments(store, groups_of(store.respondents, "all"), period, 700, 3, 1, 1)
    assert [piece.region for piece in segment.pieces] == [0, 1, 2] and segment.rows == 3 * segment.days
    assert len({(piece.first, piece.hours) for piece in segment.pieces}) == 1
