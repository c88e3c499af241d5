"""Which respondents' mean skill chooses a checkpoint."""

from __future__ import annotations

from worker.training.config import TrainConfig, averaged


def test_region_that_holds_another_one_counts_only_where_it_is_named() -> None:
    six = ("CAL", "CISO", "ERCO", "MISO", "PACW", "TEX")
    assert averaged(TrainConfig(), six) == ("CISO", "ERCO", "MISO", "PACW")
    assert averaged(TrainConfig(respondents=six), six) == six
