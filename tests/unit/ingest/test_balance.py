"""Balance checks by month."""

from __future__ import annotations

import numpy as np

from ingest.balance import balances

MONTHS = np.repeat(np.array([1, 2], np.int8), 100)


def test_balanced_grid_has_no_hours_over_tolerance() -> None:
    fuel = np.arange(200.0)
    rows = balances(
        {"D": fuel * 2 - 50, "NG": fuel * 2, "TI": np.full(200, 50.0), "NG.COL": fuel, "NG.SUN": fuel}, MONTHS
    )
    assert [(row.check, row.month, row.hours, row.over, row.max_abs) for row in rows] == [
        ("D-(NG-TI)", 1, 100, 0, 0.0),
        ("D-(NG-TI)", 2, 100, 0, 0.0),
        ("NG-fuels", 1, 100, 0, 0.0),
        ("NG-fuels", 2, 100, 0, 0.0),
    ]


def test_unbalanced_hour_is_counted_and_measured() -> None:
    demand = np.full(200, 1000.0)
    demand[120] += 30
    (_, february) = balances({"D": demand, "NG": np.full(200, 900.0), "TI": np.full(200, -100.0)}, MONTHS)
    assert (february.over, february.max_abs, february.mean_abs) == (1, 30.0, 0.3)


def test_rounding_and_one_percent_are_tolerated() -> None:
    small = balances({"D": np.full(200, 3.0), "NG": np.full(200, 4.5), "TI": np.full(200, 0.0)}, MONTHS)
    assert [row.over for row in small] == [0, 0]
    large = balances({"D": np.full(200, 10_000.0), "NG": np.full(200, 10_100.0), "TI": np.full(200, 0.0)}, MONTHS)
    assert [row.over for row in large] == [0, 0]


def test_masked_hours_are_skipped_and_unreported_fuel_counts_as_zero() -> None:
    net = np.full(200, 100.0)
    net[3] = np.nan
    coal = np.full(200, 100.0)
    coal[100:] = 80.0
    battery = np.where(MONTHS == 2, 20.0, np.nan)
    battery[150] = np.nan  # reported this month, but not this hour
    rows = balances({"NG": net, "NG.COL": coal, "NG.BAT": battery}, MONTHS)
    assert [(row.month, row.hours, row.over) for row in rows] == [(1, 99, 0), (2, 99, 0)]


def test_balance_check_needs_all_its_variables() -> None:
    assert balances({"D": np.zeros(200), "NG": np.zeros(200)}, MONTHS) == ()
