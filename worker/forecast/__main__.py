"""Forecasts from a trained checkpoint: the quantiles of a coming day, and the table of forecasts and embeddings that control reads.

    python -m worker.forecast --region ERCO --issue 2019-08-12T10 --data data [--run data/train] [--json] [--plot FILE.png]
    python -m worker.forecast --table FILE.parquet --data data [--run data/train] [--period 2019]

`coordinator forecast` is the same. A forecast is issued at 10:00 local time, for the hours of the next local day, from what was known then.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest import features
from ingest.calendar import ISSUE_HOUR, calendar_of
from ingest.catalog import check_respondents
from ingest.columns import hour_text
from ingest.errors import IngestError, UsageError
from ringattn.layout import Layout
from worker.argparse_errors import Parser
from worker.forecast.model import checkpoint
from worker.forecast.model.checkpoint import CheckpointError
from worker.forecast.model.conformal import WINDOW, calibrated
from worker.forecast.model.network import MEDIAN, QUANTILES, Forecaster, ModelConfig, ascending
from worker.training.data import Normalisation, Period, Piece, TokenStore, build_local_batch, open_token_store


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint ready to forecast: averaged weights, normalisation, and what it was trained on."""

    path: Path
    model: Forecaster
    norm: Normalisation
    respondents: tuple[str, ...]
    reference: features.Reference
    state: dict[str, Any]


@dataclass(frozen=True)
class Forecast:
    """Consecutive hours of one respondent; arrays are `[hour]`, MWh unless said."""

    respondent: str
    hours: NDArray[np.int64]  # hour numbers, UTC, hour-ending
    quantiles: NDArray[np.float64]  # [hour, level] of QUANTILES; NaN where there is no reference to correct
    demand: NDArray[np.float32]  # NaN where not measured (yet)
    operator: NDArray[np.float32]  # the operators' own forecast, DF
    embedding: NDArray[np.float32]  # [hour, dim], no unit

    @property
    def median(self) -> NDArray[np.float64]:
        """The level 0.5 of every hour, MWh, [hour]."""
        return self.quantiles[:, MEDIAN]


def load_model(run: Path) -> TrainedModel:
    """The checkpoint that a finished run names in result.json, or the checkpoint folder `run` itself.

    CheckpointError where there is neither, or where its features are those of another version.
    """
    result = run / "result.json"
    path = run / json.loads(result.read_text())["checkpoint"] if result.exists() else run
    if not (path / "state.json").exists():
        raise CheckpointError(
            f"{run} holds no finished training: `coordinator start --train` makes one, or name its folder with --run"
        )
    found = checkpoint.load(path)
    state = found.state
    if state["features"] != [features.VERSION, *features.FEATURES, *features.CONDITION] or state["quantiles"] != list(
        QUANTILES
    ):
        raise CheckpointError(f"{path} was trained on features of another version: train again with this one")
    model = Forecaster(ModelConfig(**state["model"]))
    model.update(found.average)
    norm = Normalisation(*(np.array(state["normalisation"][k], np.float32) for k in ("mean", "deviation")))
    return TrainedModel(path, model, norm, tuple(state["respondents"]), state["reference"], state)


def predict(trained: TrainedModel, store: TokenStore, respondent: str, period: Period) -> Forecast:
    """Forecasts of every hour of `period`, each issued on its own day before. UsageError for a respondent not trained on."""
    if respondent not in trained.respondents:
        raise UsageError(
            f"{respondent} is not among those trained on: {', '.join(trained.respondents)}; train with --respondents"
        )
    region = trained.respondents.index(respondent)
    there = store.period(region)
    if period.first < there.first or period.last > there.last:
        raise UsageError(f"{respondent} has hours from {there}, not all of {period}: extract them")
    first = max(there.first, period.first - trained.model.config.context - WINDOW)
    piece = Piece(region, first, period.last - first + 1)
    whole = Period(first, period.last)
    local = build_local_batch(store, [piece], trained.norm, layout=Layout("contiguous"), size=1, rank=0, scored=whole)
    embedding = trained.model.embedding(local.batch)
    quantiles = np.array(ascending(trained.model.head(embedding))).astype(np.float64)
    outcome = np.where(np.array(local.valid) > 0, np.array(local.target), np.nan)
    issue = calendar_of(respondent, first, period.last).issue
    quantiles = calibrated(quantiles, outcome, local.hours, issue)
    inside = slice(period.first - first, None)
    reference, scale, demand, operator = local.columns[inside].T
    return Forecast(
        respondent,
        local.hours[inside],
        reference[:, None] + quantiles[inside] * scale[:, None],
        demand,
        operator,
        np.array(embedding)[inside],
    )


def hours_of_issue(respondent: str, issue: str) -> Period:
    """`YYYY-MM-DDTHH` local → the hours of the next local day. UsageError for an hour at which no forecast is issued."""
    try:
        moment = datetime.strptime(issue, "%Y-%m-%dT%H")
    except ValueError as error:
        raise UsageError(
            f"--issue {issue} is no issue time: write YYYY-MM-DDT{ISSUE_HOUR}, local time of the respondent"
        ) from error
    if moment.hour != ISSUE_HOUR:
        raise UsageError(
            f"--issue {issue}: forecasts are issued at {ISSUE_HOUR}:00 local; ask for {issue[:11]}{ISSUE_HOUR:02d}"
        )
    day = int(np.datetime64(moment.date(), "D").astype(np.int64)) + 1
    calendar = calendar_of(respondent, (day - 1) * 24, (day + 2) * 24)
    hours = calendar.hours[calendar.day == day]
    return Period(int(hours[0]), int(hours[-1]))


def to_rows(forecast: Forecast) -> list[dict[str, Any]]:
    """One plain map an hour, for JSON."""
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


COLUMNS = {"q0.025": "2.5%", "q0.1": "10%", "q0.5": "median", "q0.9": "90%", "q0.975": "97.5%"}
COLUMNS |= {"operator": "DF", "demand": "demand"}
NARROW = ("q0.1", "q0.5", "q0.9")  # what a narrow terminal has room for


def format_table(rows: Sequence[dict[str, Any]], columns: int | None = None) -> list[str]:
    """Rows as a table: all columns, or the middle ones where a terminal of `columns` has no room for more."""
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
    say: Callable[[str], None] = lambda words: None,
) -> int:
    """Parquet of every respondent and hour of `period`: forecasts, DF, demand, embedding; the number of rows.

    `say` is told of each respondent as it begins.
    Columns: respondent, hour (int64, hours since 1970-01-01T00 UTC), demand, operator, q0.025 … q0.975 (float32, MWh, null where
    there is none), embedding (list of float32).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for number, respondent in enumerate(trained.respondents, 1):
        say(f"forecasting {respondent}, {number} of {len(trained.respondents)}")
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
        {"checkpoint": checkpoint.fingerprint(trained.path), "issue": f"{ISSUE_HOUR}:00 local"}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(whole, part, compression="zstd")
    part.replace(path)
    return int(whole.num_rows)


def draw_fan_chart(forecasts: Sequence[Forecast], path: Path) -> None:
    """Fan charts, one below the other: intervals, median, the operators' forecast, what happened."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(forecasts), 1, figsize=(9, 3.2 * len(forecasts)), squeeze=False, layout="constrained"
    )
    for axis, forecast in zip(axes[:, 0], forecasts, strict=True):
        x = forecast.hours.astype("datetime64[h]")
        q = forecast.quantiles / 1e3
        axis.fill_between(x, q[:, 0], q[:, -1], color="tab:blue", alpha=0.15, label="95% interval", linewidth=0)
        axis.fill_between(x, q[:, 1], q[:, -2], color="tab:blue", alpha=0.3, label="80% interval", linewidth=0)
        axis.plot(x, q[:, MEDIAN], color="tab:blue", label="median")
        axis.plot(x, forecast.operator / 1e3, color="tab:orange", linestyle="--", label="operators' forecast")
        if np.isfinite(forecast.demand).any():
            axis.plot(x, forecast.demand / 1e3, color="black", linewidth=1, label="demand")
        axis.set(
            ylabel="demand, GWh in the hour",
            title=f"{forecast.respondent}, {hour_text(int(forecast.hours[0]))} UTC and on",
        )
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@dataclass(frozen=True)
class Voice:
    """Narration and errors, on stderr: words, or JSON lines."""

    as_json: bool
    quiet: bool

    def say(self, words: str) -> None:
        """A note, unless it is to be quiet."""
        if not self.quiet:
            self._line({"event": "note", "text": words}, words)

    def error(self, error: object, code: int) -> int:
        """What went wrong; gives `code` back."""
        self._line({"event": "error", "text": str(error), "exit_code": code}, f"forecast: {error}")
        return code

    def _line(self, event: dict[str, Any], words: str) -> None:
        print(json.dumps(event) if self.as_json else words, file=sys.stderr, flush=True)


def _parser() -> Parser:
    parser = Parser(
        "python -m worker.forecast",
        "Forecasts from a trained checkpoint.",
        "python -m worker.forecast --region ERCO --issue 2019-08-12T10 --data data",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="data folder (default: data)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="finished run, or one checkpoint (default: DATA/train)")
    parser.add_argument("--region", metavar="CODE", help="respondent to forecast")
    parser.add_argument("--issue", metavar="YYYY-MM-DDTHH", help="issue time, local: forecasts the next local day")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, JSON lines on stderr")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors and the result")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw a fan chart")
    parser.add_argument(
        "--table", type=Path, metavar="FILE.parquet", help="forecasts and embeddings of all respondents"
    )
    parser.add_argument(
        "--period", metavar="P", help="with --table: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]] (default: all on disk)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.table is None) == (options.region is None) or (options.region and not options.issue):
        parser.error("name --region and --issue for one day, or --table FILE.parquet for all hours")
    voice = Voice(options.json, options.quiet)
    try:
        if options.region is not None:
            region = options.region.upper()
            check_respondents([region])
            hours = hours_of_issue(region, options.issue)  # before the model is loaded
        trained = load_model(options.run or options.data / "train")
        store = open_token_store(options.data, trained.respondents, trained.reference, voice.say)
        if options.table is not None:
            whole = Period(store.period(0).first, store.period(0).last)
            period = Period.parse(options.period, "period") if options.period else whole
            count = write_table(trained, store, period, options.table, voice.say)
            said = {"table": str(options.table), "rows": count}
            print(json.dumps(said) if options.json else f"{count:,} rows in {options.table}")
            return 0
        voice.say(f"forecasting {region} with {trained.path}")
        forecast = predict(trained, store, region, hours)
        if options.plot is not None:
            draw_fan_chart([forecast], options.plot)
    except (UsageError, CheckpointError) as error:
        return voice.error(error, 2)
    except IngestError as error:
        return voice.error(error, 1)
    except OSError as error:
        return voice.error(f"{error.filename or options.data}: {error.strerror}; name a path that can be written", 1)
    rows = to_rows(forecast)
    if options.json:
        print(
            json.dumps({"respondent": region, "issue": options.issue, "checkpoint": str(trained.path), "hours": rows})
        )
        return 0
    print(f"{region}, issued {options.issue} local, MWh; hours end at the time given (UTC)")
    print("\n".join(format_table(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("forecast: interrupted; the same command starts again", file=sys.stderr)
        sys.exit(130)
