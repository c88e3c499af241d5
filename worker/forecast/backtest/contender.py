"""What a model must do to be backtested, and the key of what it makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ingest.loader import available
from ingest.publication import Publication
from worker.forecast.backtest.rows import WalkRows
from worker.forecast.backtest.schedule import Walk
from worker.training.tokens import series_key

Log = Callable[[str], None]


class Contender(Protocol):
    """A model that is fitted again for each walk."""

    @property
    def name(self) -> str:
        """Of the folder that its walks are kept in."""

    def key(self, walk: Walk) -> str:
        """Return the digest of all that the forecasts of a walk depend on: settings, and the series up to its last year."""

    def forecast(self, walks: Sequence[Walk]) -> Iterator[list[WalkRows]]:
        """Yield the rows of each walk, in order; a fit uses no hour that its first issue time does not know."""


def key_of(
    data_dir: Path, walk: Walk, readers: Sequence[str], publication: Publication, settings: Sequence[Any]
) -> str:
    """Return the digest of a walk: of what the model reads, up to the year in which the walk ends, and of its settings.

    Args:
        data_dir: data folder.
        walk: the walk.
        readers: the respondents whose series the model reads.
        publication: when values are published.
        settings: plain data.
    """
    series = []
    for name in readers:
        last = np.datetime64(walk.hours(name).last, "h").astype("datetime64[Y]").astype(int) + 1970
        years = [year for year in available(data_dir, name).years if year <= last]
        series.append([name, series_key(data_dir, name, years, "DF", publication)])
    text = json.dumps([walk.first, walk.last, *settings, series])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
