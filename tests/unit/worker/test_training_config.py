"""Which hours train and which validate, where the settings leave it to the years on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.errors import UsageError
from worker.training.config import TrainConfig, parse, periods, plain
from worker.training.tokens import Period


def config(**settings: str) -> TrainConfig:
    return TrainConfig(data=Path("data"), **settings)  # type: ignore[arg-type]


def test_all_hours_before_the_quarter_that_validates_train() -> None:
    train, validate = periods(config(), [2015, 2016, 2017, 2018, 2019])
    assert validate == Period.parse("2018-10:2018-12", "validate")
    assert train == Period.parse("2015:2018-09", "train")


def test_named_periods_are_kept_and_the_other_follows_them() -> None:
    named = config(train="2016:2017", validate="2018")
    assert periods(named, [2019]) == (Period.parse("2016:2017", "train"), Period.parse("2018", "validate"))
    train, _ = periods(config(validate="2018"), [2015, 2016, 2017, 2018, 2019])
    assert train == Period.parse("2015:2017", "train")


@pytest.mark.parametrize(
    ("settings", "years", "words"),
    [
        ({}, [2019], "the series cover 1 year"),
        ({"train": "2018"}, [2017, 2018, 2019], "hours that validate must lie later"),
        ({"validate": "2015"}, [2015, 2016], "no hour on disk comes before"),
    ],
)
def test_periods_that_do_not_fit_are_refused(settings: dict[str, str], years: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        periods(config(**settings), years)


def test_help_names_each_default(capsys: pytest.CaptureFixture[str]) -> None:
    """A forecaster read the source to learn what a setting left out is."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, value in plain(config()).items():
        assert value in ("", [], ".") or f"(default: {value})" in said, name
