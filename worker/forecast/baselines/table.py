"""The baselines' forecasts of every respondent in one Parquet file, so that they are fitted once and compared often.

Columns: respondent, hour (number, UTC, hour-ending), issue (hour number: the last hour that the forecast may use), day (local, since
1970-01-01), demand, operator (DF), and one column a baseline; MWh, NaN where there is none. The file's metadata hold the periods
and what was chosen for whom.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Floats, Int64s
from ingest.errors import UsageError, quoted
from ingest.files import atomic_write
from ingest.publication import DAY_BEFORE, DEFAULT, Publication
from worker.training.tokens import Period

BIAS, RIDGE, OWN, POOLED, MEAN = "running bias", "ridge", "LightGBM", "LightGBM pooled", "mean of ridge and pooled"
MIXTURE = "mixture of ridges"
OWN_HOURS = (BIAS, RIDGE, OWN, POOLED, MEAN, MIXTURE)  # baselines that know nothing of other authorities' hours
NEIGHBOURS = "linear, with neighbours"  # the mixture that does

COLUMNS = ("hour", "issue", "day", "demand", "operator")
META = b"baselines"


@dataclass(frozen=True)
class Points:
    """Point forecasts of one respondent; arrays are [hour], in MWh unless stated."""

    respondent: str
    hour: Int64s  # numbers
    issue: Int64s  # hour numbers
    day: Int64s  # local days, days since 1970-01-01
    demand: Floats
    operator: Floats  # DF
    by_name: dict[str, Floats]
    choices: dict[str, Any] = field(default_factory=dict)  # by name: what was chosen on the validation hours

    def within(self, period: Period) -> Points:
        """Return the part in a period."""
        rows = (self.hour >= period.first) & (self.hour <= period.last)
        arrays = {name: getattr(self, name)[rows] for name in COLUMNS}
        return replace(self, **arrays, by_name={name: x[rows] for name, x in self.by_name.items()})


@dataclass(frozen=True)
class BaselineTable:
    """The baselines of several respondents."""

    validate: Period
    test: Period
    respondents: dict[str, Points]
    publication: Publication = DEFAULT  # what they know


def write_table(table: BaselineTable, path: Path) -> None:
    """Write the file; it appears complete or not at all."""
    parts = list(table.respondents.values())
    columns: dict[str, Any] = {
        "respondent": pa.array(np.repeat([one.respondent for one in parts], [len(one.hour) for one in parts]).tolist()),
        **{name: np.concatenate([getattr(one, name) for one in parts]) for name in COLUMNS},
        **{name: np.concatenate([one.by_name[name] for one in parts]) for name in parts[0].by_name},
    }
    about = {
        "validate": [table.validate.first, table.validate.last],
        "test": [table.test.first, table.test.last],
        "publication": str(table.publication),
        "choices": {one.respondent: one.choices for one in parts},
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({META: json.dumps(about).encode()}), buffer)
    atomic_write(path, buffer.getvalue())


def read_table(path: Path) -> BaselineTable:
    """Read the file that `write_table` wrote.

    Raises:
        UsageError: there is none, or it is another kind of file.
    """
    fix = f"write it with `python -m scripts.evaluate.forecast baselines --out {quoted(path)}`"
    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} holds no baselines ({error}); {fix}") from error
    metadata = found.schema.metadata or {}
    if META not in metadata:
        raise UsageError(f"{path} holds no baselines; {fix}")
    about = json.loads(metadata[META])
    columns = {name: found[name].to_numpy() for name in found.column_names if name != "respondent"}
    names = np.array(found["respondent"].to_pylist())
    return BaselineTable(
        Period(*about["validate"]),
        Period(*about["test"]),
        {
            name: _points(name, columns, np.flatnonzero(names == name), choices)
            for name, choices in about["choices"].items()
        },
        Publication.parse(about.get("publication", str(DAY_BEFORE))),
    )


def _points(respondent: str, columns: dict[str, Any], rows: Int64s, choices: dict[str, Any]) -> Points:
    arrays = {name: x[rows] for name, x in columns.items()}
    by_name = {name: x for name, x in arrays.items() if name not in COLUMNS}
    return Points(respondent, **{name: arrays[name] for name in COLUMNS}, by_name=by_name, choices=choices)
