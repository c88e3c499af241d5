"""The coverage picture: shares from series.json, and a PNG that names the origin of its data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ingest.coverage import COLOURS, NOTHING, SeriesSummary, colour_of, coverage, write_coverage
from ingest.errors import UsageError
from tests.support.data_folder import ABSENT, build_all, commit, daily, shard

MONTHS = [744, 696, 744, 720, 744, 720, 744, 744, 720, 744, 720, 744]


def summary(respondent: str, year: int, **ok: list[int]) -> SeriesSummary:
    return SeriesSummary(respondent, year, "synthetic", MONTHS, {name: {"ok": months} for name, months in ok.items()})


def test_shares_by_group_and_month() -> None:
    one = summary("PACW", 2024, D=MONTHS, **{"NG.COL": MONTHS, "NG.SUN": [0] * 12})
    other = summary("ERCO", 2025, D=[372, *MONTHS[1:]])
    picture = coverage([one, other])
    assert picture.rows == (("ERCO", "demand"), ("PACW", "demand"), ("PACW", "fuels"))
    assert (picture.months[0], picture.months[-1]) == ("2024-01", "2025-12")
    assert picture.share[0, 12] == 0.5
    assert np.isnan(picture.share[0, :12]).all()
    assert (picture.share[1, :12] == 1).all()
    assert (picture.share[2, :12] == 0.5).all()


def test_months_that_nobody_asked_for_are_blank() -> None:
    """A quarter was asked for, and all of it came: nine months looked like nine months of missing hours."""
    quarter = [*MONTHS[:3], *[0] * 9]
    rest = [0, 0, 0, 12, *MONTHS[4:]]
    one = SeriesSummary("PACW", 2024, "synthetic", MONTHS, {"D": {"ok": quarter, "unasked": rest}})
    (share,) = coverage([one]).share
    assert share[:4].tolist() == [1, 1, 1, 0]
    assert np.isnan(share[4:]).all()


def test_coverage_picture_shows_gaps(tmp_path: Path) -> None:
    pixels = []
    for name, hole in (("whole", 0), ("one-hour", 1)):
        load = daily(8784)
        load[1000 : 1000 + hole] = ABSENT
        data = tmp_path / name
        commit(data, shard(), {"D": load, "DF": daily(8784)})
        build_all(data)
        path = write_coverage(data)
        assert path.name == "coverage.png"
        pixels.append(path.read_bytes())
    assert pixels[0].startswith(b"\x89PNG")
    assert pixels[0] != pixels[1]


def test_colours_by_share() -> None:
    shares = [0.0, 0.4, 0.5, 0.95, 743 / 744, 1.0]
    assert [colour_of(share) for share in shares] == list(COLOURS)
    assert colour_of(float("nan")) == NOTHING


def test_picture_without_matplotlib(tmp_path: Path) -> None:
    """Every extraction draws it at its end: matplotlib took longer to load than a year of five respondents to fetch."""
    commit(tmp_path, shard(), {"D": daily(8784)})
    build_all(tmp_path)
    code = f"import sys; from ingest.coverage import write_coverage; write_coverage({str(tmp_path)!r}); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_coverage_without_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no series"):
        write_coverage(tmp_path)
