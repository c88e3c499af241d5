"""The forecaster's parts: attention as kernel regression, quantiles, scores, checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mlx.utils import tree_flatten

from ringattn.layout import Layout
from worker.forecast.model import checkpoint, conformal, scores
from worker.forecast.model.network import (
    HOURS,
    MEDIAN,
    QUANTILES,
    WAVES,
    Batch,
    Forecaster,
    ModelConfig,
    ascending,
    pinball,
)
from worker.training import objective
from worker.training.data import LocalBatch

CONFIG = ModelConfig(features=3, conditions=2, regions=2, context=60, dim=8, heads=2, head_dim=16, hidden=8)


def batch(rows: int, seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    numbers = np.arange(rows)
    half = rows // 2
    return Batch(
        mx.array(draw.normal(size=(HOURS, rows, 3)).astype(np.float32)),
        mx.array(draw.normal(size=(rows, 2)).astype(np.float32)),
        mx.array(draw.normal(size=(HOURS, rows, 4)).astype(np.float32)),
        mx.array(draw.normal(size=(rows, 2)).astype(np.float32)),
        mx.array((numbers % 7 > 0).astype(np.float32)),
        mx.array((numbers % 2).astype(np.int32)),
        mx.array((numbers % half).astype(np.float32)),
        mx.array((numbers >= half).astype(np.int32)),
        mx.array(numbers.astype(np.int32)),
        None,
        rows,
        1,
        Layout("zigzag"),
    )


@pytest.mark.parametrize("scope", ["own", "all"])
def test_recall_is_kernel_regression(scope: str) -> None:
    """Against a plain numpy Nadaraya-Watson over every hour of every day, with the same metric, window and segments."""
    mx.random.seed(1)
    config = dataclasses.replace(CONFIG, scope=scope)
    recall = Forecaster(config).recall
    given_ = batch(30)
    rows = 30
    got = np.array(recall(given_))
    metric = np.array(recall.metric.weight).T
    now, then = (np.repeat(np.array(x) @ metric, HOURS, axis=0) for x in (given_.condition, given_.memory_condition))
    memory = np.array(given_.memory).swapaxes(0, 1).reshape(-1, 4)
    inputs = np.concatenate(
        [memory[:, :3], np.repeat(np.array(given_.memory_condition), HOURS, axis=0), memory[:, 3:]], 1
    )
    value = inputs @ np.array(recall.value.weight).T
    day, hour = np.arange(rows * HOURS) // HOURS, np.arange(rows * HOURS) % HOURS
    gap, apart = ((x[:, None] - x[None]) for x in (day, hour))
    segment, remembers = np.array(given_.segment)[day], np.array(given_.remembers)[day] > 0
    seen = (gap >= 0) & (gap < 3) & (segment[:, None] == segment[None])  # 60 hours: three rows, the first in part
    heads = []
    for beta, (daily, yearly) in zip(np.exp(np.array(recall.log_beta)), np.array(recall.wave), strict=True):
        score = -beta * ((now[:, None] - then[None]) ** 2).sum(-1)
        score += daily * np.cos(2 * np.pi * apart / WAVES[0]) + yearly * np.cos(2 * np.pi * HOURS * gap / WAVES[1])
        if scope == "all":
            code = np.array(recall.code)[np.array(given_.region)][day]
            score += code @ code.T
        weight = np.where(seen & remembers, np.exp(score - score.max()), 0)
        heads.append(weight / np.maximum(weight.sum(1, keepdims=True), 1e-30) @ value)
    want = np.concatenate(heads, axis=1) @ np.array(recall.out.weight).T
    sees_any = (seen & remembers).any(1).reshape(rows, HOURS)
    assert sees_any.any() and not sees_any.all()
    np.testing.assert_allclose(got[sees_any.T], want.reshape(rows, HOURS, -1).swapaxes(0, 1)[sees_any.T], atol=2e-5)


def test_dropout_masks_follow_the_key() -> None:
    model = Forecaster(CONFIG)
    model.head.weight = mx.random.normal(model.head.weight.shape)
    one, same, other = (np.array(model(batch(6), mx.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_asked_rows_have_the_forecasts_of_all() -> None:
    model = Forecaster(CONFIG)
    model.head.weight = mx.random.normal(model.head.weight.shape)
    whole, asked = batch(12), [3, 4, 9]
    part = dataclasses.replace(whole, features=whole.features[:, mx.array(asked)], asked=mx.array(asked))
    np.testing.assert_allclose(np.array(model(part)), np.array(model(whole))[:, asked], atol=1e-5)


def test_gradient_by_hours_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient, dropout included; 24 parts, of which MLX traces none."""
    monkeypatch.setattr(objective, "TOKENS", 12)
    mx.random.seed(2)
    model, twin = Forecaster(CONFIG), Forecaster(CONFIG)
    model.head.weight = mx.random.normal(model.head.weight.shape)
    target = mx.random.normal((HOURS, 12))
    valid = (mx.random.uniform(shape=(HOURS, 12)) > 0.2).astype(mx.float32)
    none = np.zeros((HOURS, 12), np.int32)
    local = LocalBatch(
        batch(12), target, valid, 12 * HOURS, np.zeros((HOURS, 12, 4), np.float32), none.astype(np.int64), none
    )

    def plain(model: Forecaster, local: LocalBatch, key: mx.array) -> mx.array:
        return (pinball(model(local.batch, key), local.target) * local.valid).sum()

    key = mx.random.key(5)
    wanted, got = (nn.value_and_grad(model, loss)(model, local, key) for loss in (plain, objective.Objective(twin)))
    assert float(got[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
    for (name, one), (other, two) in zip(tree_flatten(wanted[1]), tree_flatten(got[1]), strict=True):
        assert name == other
        np.testing.assert_allclose(np.array(two), np.array(one), rtol=2e-4, atol=2e-4, err_msg=name)
    assert float(mx.abs(got[1]["recall"]["metric"]["weight"]).max()) > 0


def test_untrained_model_forecasts_the_reference() -> None:
    assert (np.array(Forecaster(CONFIG)(batch(6)))[..., MEDIAN] == 0).all()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (5, len(QUANTILES)), elements=st.floats(-20, 20, width=32)))
def test_quantiles_never_cross(raw: np.ndarray) -> None:
    q = np.array(ascending(mx.array(raw)))
    assert (np.diff(q, axis=1) >= 0).all()
    np.testing.assert_array_equal(q[:, MEDIAN], raw[:, MEDIAN])


def test_pinball_of_equal_quantiles_is_the_absolute_error() -> None:
    q = mx.zeros((3, len(QUANTILES)))
    np.testing.assert_allclose(np.array(pinball(q, mx.array([1.0, -2.0, 0.0]))), [1.0, 2.0, 0.0], rtol=1e-6)


def test_scores_equal_numbers_by_hand() -> None:
    actual = np.array([100.0, 200.0, np.nan, 50.0])
    point = np.array([110.0, 180.0, 5.0, 50.0])
    reference = np.array([120.0, 160.0, 5.0, 50.0])
    assert scores.mae(actual, point) == pytest.approx(10)
    assert scores.skill(actual, point, reference) == pytest.approx(0.5)
    assert scores.mape(actual, point) == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert scores.coverage(actual, point - 10, point + 10) == pytest.approx(2 / 3)
    assert scores.peak_mape(actual[:2], point[:2], np.zeros(2, np.int64)) == pytest.approx(0.1)
    assert np.isnan(scores.peak_mape(actual, point, np.zeros(4, np.int64)))
    history = np.concatenate([np.zeros(168), np.full(168, 4.0)])
    assert scores.mase(actual, point, history) == pytest.approx(10 / 4)
    quantiles = np.tile([0.0, 10.0], (1, 1))
    assert scores.pinball(np.array([4.0]), quantiles, (0.1, 0.9)) == pytest.approx((0.4 + 0.6) / 2)
    assert scores.crps(np.array([4.0]), quantiles, (0.1, 0.9)) == pytest.approx(2 * 0.5 * 0.8)


PROMISED = np.array([-1.96, -1.2816, -0.6745, 0, 0.6745, 1.2816, 1.96])


def drifting(days: int) -> tuple[np.ndarray, ...]:
    """Return quantiles, outcome, hours and issue times of errors three times as wide as promised until half of the days, then narrower."""
    draw = np.random.default_rng(0)
    hours = np.arange(24 * days)
    day = np.repeat(draw.normal(size=days), 24)  # hours of a day miss together
    spread = np.where(hours < 12 * days, 3.0, 0.8)
    outcome = (0.7 * day + 0.7 * draw.normal(size=len(hours))) * spread
    outcome[draw.random(len(hours)) < 0.05] = np.nan
    return np.tile(PROMISED, (len(hours), 1)), outcome, hours, hours // 24 * 24 - 15


def test_intervals_cover_month_by_month_through_a_change_of_the_errors() -> None:
    quantiles, outcome, hours, issue = drifting(600)
    found = conformal.calibrated(quantiles, outcome, hours, issue, np.zeros(3))
    np.testing.assert_array_equal(found[:, MEDIAN], quantiles[:, MEDIAN])
    assert (np.diff(found, axis=1) >= 0).all()
    missed = {}
    for m in range(1, 20):
        inside = hours // 720 == m
        raw, good = (scores.coverage(outcome[inside], one[inside, 1], one[inside, -2]) for one in (quantiles, found))
        assert abs(raw - 0.8) > 0.06, (m, raw)
        missed[m] = abs(good - 0.8)
    assert missed.pop(10) < 0.1  # the month of the change
    assert max(missed.values()) < 0.05, missed
    late = hours > 24 * 450
    for (low, high), misses in zip(conformal.PAIRS, conformal.MISSES, strict=True):
        assert abs(scores.coverage(outcome[late], found[late, low], found[late, high]) - (1 - misses)) < 0.03


@pytest.mark.parametrize("day", [100, 150, 299])
def test_intervals_know_no_outcome_after_their_issue_time(day: int) -> None:
    quantiles, outcome, hours, issue = drifting(300)
    found = conformal.calibrated(quantiles, outcome, hours, issue, np.zeros(3))
    for value in (99.0, np.nan):
        spoilt = np.where(hours > day * 24 - 15, value, outcome)
        other = conformal.calibrated(quantiles, spoilt, hours, issue, np.zeros(3))
        np.testing.assert_array_equal(other[: day * 24 + 24], found[: day * 24 + 24])


def test_intervals_do_not_depend_on_where_the_hours_begin() -> None:
    """A live forecast replays no more than it needs, a backtest has the whole year."""
    quantiles, outcome, hours, issue = drifting(300)
    start = np.array([0.3, -0.2, 0.1])
    whole = conformal.calibrated(quantiles, outcome, hours, issue, start)
    for day in range(120, 300, 40):
        part = slice(day * 24 - conformal.WARM_UP, day * 24 + 24)
        live = conformal.calibrated(quantiles[part], outcome[part], hours[part], issue[part], start)
        np.testing.assert_array_equal(live[-24:], whole[part][-24:])
    other = conformal.calibrated(quantiles, outcome, hours, issue, start + 0.5)
    assert (other[-24:, [0, -1]] != whole[-24:, [0, -1]]).any()  # the slowest width still knows the checkpoint's


def saved(step: int) -> checkpoint.Checkpoint:
    tree = {"layer": {"weight": mx.full((2, 3), float(step))}}
    return checkpoint.Checkpoint(tree, tree, {"step": mx.array(step)}, {"step": step})


def test_digest_of_a_checkpoint_does_not_depend_on_the_order_of_its_arrays(tmp_path: Path) -> None:
    """A resumed run has them in the order of the file that it read; the digest names its forecaster in later requests."""
    tree = {f"layer{n}": {"weight": mx.full((2, 3), float(n)), "bias": mx.zeros(n + 1)} for n in range(9)}
    backwards = {name: dict(reversed(layer.items())) for name, layer in reversed(tree.items())}
    made = [
        checkpoint.save(tmp_path / str(n), checkpoint.Checkpoint(one, one, one, {"step": 1}))
        for n, one in enumerate((tree, backwards))
    ]
    assert checkpoint.fingerprint(made[0]) == checkpoint.fingerprint(made[1])


def test_checkpoints_are_atomic_and_damaged_ones_skipped(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, saved(step))
    (tmp_path / ".000005.77.part").mkdir()  # left by a killed process
    found, refused = checkpoint.newest(tmp_path)
    assert found is not None and found.state["step"] == 4 and not refused
    np.testing.assert_array_equal(np.array(found.weights["layer"]["weight"]), np.full((2, 3), 4.0))
    checkpoint.prune(tmp_path, {"000001"})
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["000001", "000003", "000004"]
    (tmp_path / "000004" / "optimizer.safetensors").write_bytes(b"")
    found, refused = checkpoint.newest(tmp_path)
    assert found is not None and found.state["step"] == 3 and "optimizer" in refused[0]
    (tmp_path / "000003" / "state.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match="is missing or damaged"):
        checkpoint.load(tmp_path / "000003")
