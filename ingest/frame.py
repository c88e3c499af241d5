"""Loaded series as a pandas DataFrame: an index in UTC, units, and local time on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.units import unit_of
from ingest.zones import zone_of

if TYPE_CHECKING:
    import pandas as pd

    from ingest.loader import SeriesArrays

STAMPED = "end of the hour, UTC"


def to_frame(series: SeriesArrays, *, local_time: bool = False) -> pd.DataFrame:
    """Return series as a DataFrame; see `SeriesArrays.to_frame`.

    Raises:
        UsageError: a respondent's time zone is unknown, and local time was asked for.
    """
    import pandas as pd  # here: it takes half a second to load, and arrays need none of it

    index = pd.date_range(series.hours[0], periods=len(series.hours), freq="h", tz="UTC", name="period")
    frame = pd.DataFrame(series.values, index=index, columns=list(series.names))
    if local_time:
        for respondent in dict.fromkeys(name.partition(".")[0] for name in series.names):
            frame[f"{respondent}.local_time"] = index.tz_convert(zone_of(respondent))
    frame.attrs = {
        "units": {name: unit_of(name.partition(".")[2]) for name in series.names},
        "period": STAMPED,
    }
    return frame
