"""Tables of forecasts: lines for a terminal, and the Parquet file that control training reads."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ingest.calendar import ISSUE_HOUR
from ingest.files import atomic_write
from worker.forecast.model import checkpoint
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import TrainedModel, predict
from worker.training.tokens import Period, TokenStore

COLUMNS = {"q0.025": "2.5%", "q0.1": "10%", "q0.5": "median", "q0.9": "90%", "q0.975": "97.5%"}
COLUMNS |= {"operator": "DF", "difference": "less DF", "demand": "demand"}
MIDDLE = ("q0.1", "q0.5", "q0.9", "operator", "difference", "demand")
NARROW = ("q0.1", "q0.5", "q0.9")  # what a narrow terminal has room for
TIMES = 14 + 10  # columns of the two times: the first one with its mark
CELL = 9
OWN_HISTORY = "*"  # marks an hour that starts from the authority's own history


def format_table(rows: Sequence[dict[str, Any]], columns: int | None = None) -> list[str]:
    """Format rows as lines of text.

    Args:
        rows: as `answer.to_rows` returns them.
        columns: width of the terminal; a narrow one gets the middle columns only. None: no limit.
    """
    shown: Sequence[str] = list(COLUMNS)
    times = TIMES
    if columns is not None and columns < times + CELL * len(shown):
        shown = MIDDLE
    if columns is not None and columns < times + CELL * len(shown):
        shown, times = NARROW, 13  # the mark takes the place of the blank after it
    lines = [f"{'period':<14}{' local':<10}"[:times] + "".join(f"{COLUMNS[name]:>{CELL}}" for name in shown)]
    for row in rows:
        local = datetime.fromisoformat(row["local"])
        mark = OWN_HISTORY if row.get("reference") == "own history" else ""
        period = f"{row['period']}{mark}"
        cells = "".join(cell(row[name]) for name in shown)
        narrow = f"{period}{cells[len(period) - times :]}"
        lines.append(narrow if shown is NARROW else f"{period:<14} {local:%a %H:%M}" + cells)
    return lines


def cell(x: float | None) -> str:
    """Return a number of a table, or a dash."""
    return f"{'–':>{CELL}}" if x is None else f"{round(x):{CELL},}"


def number(x: float) -> float | None:
    """Return a number for JSON, rounded; None where there is none."""
    return round(float(x), 1) if np.isfinite(x) else None


def write_table(
    trained: TrainedModel,
    store: TokenStore,
    period: Period,
    path: Path,
    origin: str,
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
        origin: of the series, for the metadata.
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
            "origin": origin,
            "publication": str(trained.publication),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd")
    atomic_write(path, memoryview(sink.getvalue()))
    return int(whole.num_rows)
