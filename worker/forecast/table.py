"""Tables of forecasts: rows for JSON, lines for a terminal, and the Parquet file that control training reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingest.calendar import ISSUE_HOUR
from ingest.columns import hour_text
from ingest.files import atomic_write
from worker.forecast.model import checkpoint
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import Forecast, TrainedModel, predict
from worker.training.tokens import Period, TokenStore

COLUMNS = {"q0.025": "2.5%", "q0.1": "10%", "q0.5": "median", "q0.9": "90%", "q0.975": "97.5%"}
COLUMNS |= {"operator": "DF", "demand": "demand"}
NARROW = ("q0.1", "q0.5", "q0.9")  # what a narrow terminal has room for


def to_rows(forecast: Forecast) -> list[dict[str, Any]]:
    """Return one plain map an hour, for JSON; MWh, None where there is no value."""
    return [
        {
            "period": hour_text(int(hour)),
            **{f"q{level:g}": _number(q) for level, q in zip(QUANTILES, quantiles, strict=True)},
            "operator": _number(operator),
            "demand": _number(demand),
        }
        for hour, quantiles, operator, demand in zip(
            forecast.hours, forecast.quantiles, forecast.operator, forecast.demand, strict=True
        )
    ]


def format_table(rows: Sequence[dict[str, Any]], columns: int | None = None) -> list[str]:
    """Format rows as lines of text.

    Args:
        rows: as `to_rows` returns them.
        columns: width of the terminal; a narrow one gets the middle columns only. None: no limit.
    """
    shown = list(COLUMNS) if columns is None or columns >= 13 + 9 * len(COLUMNS) else list(NARROW)
    lines = [f"{'period':<13}" + "".join(f"{COLUMNS[name]:>9}" for name in shown)]
    for row in rows:
        cells = [row[name] for name in shown]
        lines.append(f"{row['period']:<13}" + "".join("        –" if x is None else f"{x:9,.0f}" for x in cells))
    return lines


def _number(x: float) -> float | None:
    return round(float(x), 1) if np.isfinite(x) else None


def write_table(
    trained: TrainedModel,
    store: TokenStore,
    period: Period,
    path: Path,
    log: Callable[[str], None] = lambda message: None,
) -> int:
    """Write the forecasts of every respondent and hour of a period as Parquet.

    Columns: respondent, hour (int64, hours since 1970-01-01T00 UTC), demand, operator, q0.025 … q0.975 (float32, MWh, null where
    there is none), embedding (list of float32).

    Args:
        trained: the model.
        store: tokens of its respondents.
        period: hours to forecast.
        path: file to write.
        log: called with a message before each respondent.

    Returns:
        The number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for number, respondent in enumerate(trained.respondents, 1):
        log(f"forecasting {respondent}, {number} of {len(trained.respondents)}")
        forecast = predict(trained, store, respondent, period)
        count, dim = forecast.embedding.shape
        columns = {
            "respondent": pa.array([respondent] * count).dictionary_encode(),
            "hour": pa.array(forecast.hours),
            "demand": pa.array(forecast.demand, from_pandas=True),
            "operator": pa.array(forecast.operator, from_pandas=True),
            **{
                f"q{level:g}": pa.array(forecast.quantiles[:, i].astype(np.float32), from_pandas=True)
                for i, level in enumerate(QUANTILES)
            },
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(forecast.embedding.reshape(-1)), dim),
        }
        tables.append(pa.table(columns))
    whole = pa.concat_tables(tables, promote_options="default")
    whole = whole.replace_schema_metadata(
        {
            "checkpoint": checkpoint.fingerprint(trained.path),
            "issue": f"{ISSUE_HOUR}:00 local",
            "publication": str(trained.publication),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd")
    atomic_write(path, memoryview(sink.getvalue()))
    return int(whole.num_rows)
