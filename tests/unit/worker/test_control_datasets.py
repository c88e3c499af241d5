"""Datasets of a control training: what each hour knows of a day-ahead forecast."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ingest.calendar import calendar_of
from rl.env.region import Region, region
from worker.control.datasets import known_ahead, standard_offset

HORIZON = 36
HOURS = np.arange("2018-01-01T08", "2018-12-31T08", dtype="datetime64[h]")


def measured(name: str) -> Region:
    return region(name, HOURS, np.full(len(HOURS), 9.0), offset=standard_offset(name), reference_end="2019-01-01T00")


@pytest.mark.parametrize("name", ["CISO", "MISO", "AZPS"])  # daylight saving; days of Eastern standard time; none
def test_no_hour_knows_a_forecast_before_its_operating_day_has_one(name: str) -> None:
    """Operating days follow daylight saving: by standard time 23:00 belongs to the next day, issued up to 24 hours later."""
    one = measured(name)
    hours = HOURS.astype(np.int64)
    issue = calendar_of(name, int(hours[0]), int(hours[-1])).issue
    source = known_ahead(one, np.arange(len(hours), dtype=float), HORIZON)[48:-HORIZON, :, 0].astype(int)
    target = np.arange(48, len(hours) - HORIZON)[:, None] + np.arange(HORIZON)
    begins = hours[48:-HORIZON, None] - 1
    assert (issue[source] <= begins).all()
    later = np.minimum(source + 24, target)
    assert ((source == target) | (issue[later] > begins)).all()  # nothing newer was known
    assert_array_equal((target - source) % 24, 0)


def test_another_forecast_of_a_day_changes_no_hour_before_it_is_issued() -> None:
    one = measured("CISO")
    issued = np.random.default_rng(0).uniform(0.5, 1.0, len(HOURS))
    calendar = calendar_of("CISO", int(HOURS[0].astype(int)), int(HOURS[-1].astype(int)))
    for summer in (False, True):
        day = calendar.day[calendar.summer == summer][2000]
        other = np.where(calendar.day == day, 0.1, issued)
        before, after = (known_ahead(one, each, HORIZON)[..., 0] for each in (issued, other))
        at = calendar.issue[calendar.day == day][0]
        early = calendar.hours - 1 < at
        assert_array_equal(before[early], after[early])
        assert (before[calendar.hours - 1 == at] != after[calendar.hours - 1 == at]).any()
