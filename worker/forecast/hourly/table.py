"""The file of hourly forecasts that control reads: one row an authority and issue hour, in one Parquet file.

| column | type | meaning |
| --- | --- | --- |
| `respondent` | dictionary of text | EIA code |
| `issue` | int64 | hour number (hours since 1970-01-01T00 UTC, hour-ending) of the hour at whose end the forecast is made |
| `median` | float32 [horizon] | MWh of hours issue + 1, issue + 2, …; NaN where nothing can be said |
| `quantiles` | float32 [horizon × level] | MWh, the levels of an hour beside each other; the levels are in the metadata |
| `paths` | float32 [horizon × path] | MWh, the paths of an hour beside each other; absent without paths |

The metadata `hourly` is JSON: horizon, levels, paths, seed, publication.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.columns import open_parquet
from ingest.errors import UsageError, quoted
from ingest.files import storage_errors
from ingest.publication import DEFAULT, Publication
from worker.forecast.hourly.forecasts import HourlyForecasts
from worker.forecast.model.network import QUANTILES

META = b"hourly"


def write_hourly(forecasts: Iterable[HourlyForecasts], path: Path, about: dict[str, Any]) -> int:
    """Write forecasts of equal horizons, one after another, and return the number of rows; the file appears complete or not at all.

    Args:
        forecasts: of each authority; only one is in memory at a time.
        path: file to write.
        about: how they were made, for the metadata.
    """
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    writer, rows = None, 0
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for one in forecasts:
                table = _table(one, about)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
                rows += table.num_rows
            if writer is not None:
                writer.close()
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return rows


def _table(forecasts: HourlyForecasts, about: dict[str, Any]) -> Any:
    import pyarrow as pa

    def lists(x: NDArray[np.float32]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), int(np.prod(x.shape[1:])))

    names = pa.DictionaryArray.from_arrays(np.zeros(len(forecasts.issues), np.int32), [forecasts.respondent])
    columns = {
        "respondent": names,
        "issue": pa.array(forecasts.issues),
        "median": lists(forecasts.median),
        "quantiles": lists(forecasts.quantiles),
        **({"paths": lists(forecasts.paths)} if forecasts.paths.shape[-1] else {}),
    }
    shape = {"horizon": forecasts.median.shape[1], "levels": QUANTILES, "paths": forecasts.paths.shape[-1]}
    return pa.table(columns).replace_schema_metadata({META: json.dumps({**shape, **about})})


def read_hourly(path: Path, publication: Publication | None = None) -> dict[str, HourlyForecasts]:
    """Return the forecasts of a file by respondent.

    Args:
        path: file that `write_hourly` wrote.
        publication: of the values that they must have been made from; None accepts any.

    Raises:
        UsageError: it is no such file, or of another publication.
    """
    with open_parquet(path) as file:
        meta = (file.schema_arrow.metadata or {}).get(META)
        if meta is None:
            raise UsageError(
                f"{path} holds no hourly forecasts: `coordinator forecast --hourly {quoted(path)}` writes them"
            )
        about = json.loads(meta)
        if publication is not None and about.get("publication", str(DEFAULT)) != str(publication):
            raise UsageError(
                f"{path}: its forecasts know values as in `{about.get('publication', str(DEFAULT))}`, not `{publication}`: "
                f"`coordinator forecast --hourly {quoted(path)} --publication {publication} …` makes them again"
            )
        parts: dict[str, list[HourlyForecasts]] = {}
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            name = str(table["respondent"][0])
            parts.setdefault(name, []).append(_forecasts(name, table, about))
    return {name: _joined(found) for name, found in parts.items()}


def _forecasts(name: str, table: Any, about: dict[str, Any]) -> HourlyForecasts:
    horizon = about["horizon"]
    shapes = {"median": (horizon,), "quantiles": (horizon, len(about["levels"])), "paths": (horizon, about["paths"])}
    found = {
        column: table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)
        if column in table.column_names
        else np.empty((len(table), *shape), np.float32)
        for column, shape in shapes.items()
    }
    return HourlyForecasts(name, table["issue"].to_numpy(), **found)


def _joined(parts: list[HourlyForecasts]) -> HourlyForecasts:
    arrays = {
        column: np.concatenate([getattr(one, column) for one in parts])
        for column in ("issues", "median", "quantiles", "paths")
    }
    return HourlyForecasts(parts[0].respondent, **arrays)
