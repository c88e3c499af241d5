"""Command line of forecasts from a trained checkpoint; `coordinator forecast` runs it.

    python -m worker.forecast --region ERCO --issue 2019-08-12T10 --data data [--run data/train] [--json] [--plot FILE.png]
    python -m worker.forecast --region ERCO --issue 2019-08-12T15 --data data [--horizon 48] [--paths 20] [--seed 0]
    python -m worker.forecast --region ERCO --issue latest|tomorrow --data data [--out FILE.csv]
    python -m worker.forecast --table FILE.parquet --data data [--run data/train] [--period 2019]
    python -m worker.forecast --hourly FILE.parquet --data data [--region ERCO,CAL] [--period 2019] [--horizon 36] [--paths 20]

The trained model forecasts the next local day at 10:00. Any other issue hour, --horizon, --paths and --hourly need no training: the
hourly regressions answer (`worker.forecast.hourly`). The messages and `--json` say which model it was. Results go to stdout; messages and
errors go to stderr, as JSON lines with `--json`.
Exit codes: 0 done, 1 failed or nothing can be said of the day, 2 usage, 130 Ctrl-C.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.wire.exit_codes import ExitCode
from ingest import manifest
from ingest.catalog import check_respondents
from ingest.columns import hour_number
from ingest.data_folder import check_there
from ingest.errors import IngestError, UsageError, quoted
from ingest.loader import available
from ingest.settings import parse_codes
from ingest.snapshot import series_folder
from worker.argparse_errors import Parser
from worker.forecast.answer import Answer, to_document, to_text, write_answer
from worker.forecast.backtest.rows import check_suffix
from worker.forecast.basis import basis_of
from worker.forecast.hourly.cli import forecast_issue, is_hourly, publication_of, write_file
from worker.forecast.hourly.inputs import MAX_HORIZON
from worker.forecast.issue import NAMED, TOMORROW, resolve_issue
from worker.forecast.model.checkpoint import CheckpointError
from worker.forecast.plot import draw_fan_chart
from worker.forecast.predict import TrainedModel, hours_of_issue, load_model, parse_issue, predict
from worker.forecast.table import write_table
from worker.training.tokens import Period

MAX_PATHS = 1000
MAX_SEED = 2**63 - 1  # half of the key of a path's random numbers

OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "default": Path("data"), "metavar": "DIR", "help": "data folder (default: data)"},
    "--run": {"type": Path, "metavar": "DIR", "help": "finished run, or one checkpoint (default: DATA/train)"},
    "--region": {
        "metavar": "CODE",
        "help": "respondent to forecast; with --hourly also several, e.g. ERCO,CAL (default: all)",
    },
    "--issue": {
        "metavar": "YYYY-MM-DDTHH|latest|tomorrow",
        "help": "issue time, local. latest: the end of the newest demand on disk; tomorrow: 10:00 on the day of that demand, for the day after; neither looks at the clock. At 10 the trained model forecasts the next local day, at any other hour the hourly regressions",
    },
    "--horizon": {"type": int, "metavar": "H", "help": "hours ahead of the hourly regressions, 1 to 48 (default: 48)"},
    "--paths": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "scenarios of the hours ahead, also from the hourly regressions",
    },
    "--seed": {"type": int, "default": 0, "help": "of the paths (default: 0)"},
    "--hourly": {"type": Path, "metavar": "FILE.parquet", "help": "hourly forecasts of every issue hour, for control"},
    "--publication": {
        "metavar": "P",
        "help": "when values are published: day-before, deadline, …; a model trained for another one is refused",
    },
    "--json": {"action": "store_true", "help": "one JSON object on stdout, JSON lines on stderr"},
    "--quiet": {"action": "store_true", "help": "print only errors and the result"},
    "--out": {
        "type": Path,
        "metavar": "FILE",
        "help": "also write the forecast for `coordinator judge`: .parquet or .csv",
    },
    "--plot": {"type": Path, "metavar": "FILE.png", "help": "also draw a fan chart"},
    "--table": {"type": Path, "metavar": "FILE.parquet", "help": "forecasts and embeddings of all respondents"},
    "--period": {
        "metavar": "P",
        "help": "with --table and --hourly: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]] (default: all on disk)",
    },
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "python -m worker.forecast",
        "Forecasts from a trained checkpoint.",
        "python -m worker.forecast --region ERCO --issue 2019-08-12T10 --data data",
        OPTIONS,
    )
    options = parser.parse_args(argv)
    one = options.region is not None and options.hourly is None
    if one + (options.table is not None) + (options.hourly is not None) != 1 or (one and not options.issue):
        parser.error("name --region and --issue for one issue time, or --table or --hourly FILE.parquet for all hours")
    return options


def _check_values(options: argparse.Namespace) -> None:
    """Check the options that the hourly regressions read, before anything is loaded.

    Raises:
        UsageError: a value is outside its bounds or no issue time, --plot or --out has no single forecast, or a file is to be no Parquet file.
    """
    if options.region is not None and options.hourly is None and options.issue not in NAMED:
        parse_issue(options.issue)
    bounds = {"horizon": (1, MAX_HORIZON), "paths": (0, MAX_PATHS), "seed": (0, MAX_SEED)}
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(
                f"--{name} {value} is not between {least} and {most}; `coordinator forecast --help` lists the options"
            )
    for name, does in (("plot", "draws"), ("out", "writes")):
        if getattr(options, name) is not None and (options.region is None or options.hourly is not None):
            raise UsageError(
                f"--{name} {does} the forecast of one --issue: name --region and --issue; --hourly and --table have files of their own"
            )
    if options.out is not None:
        check_suffix(options.out)
    for name in ("out", "plot", "hourly", "table"):
        path = getattr(options, name)
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"--{name} {path}: there is no folder {path.parent}; make it, or name another")
    if options.hourly is not None and options.hourly.suffix != ".parquet":
        raise UsageError(f"--hourly {options.hourly} is to be a Parquet file; name one that ends in .parquet")


def _one_region(options: argparse.Namespace) -> str:
    """Return the respondent of --region.

    Raises:
        UsageError: it names several, or one that EIA does not know.
    """
    codes = parse_codes(options.region)
    check_respondents(codes)
    if len(codes) != 1:
        raise UsageError(
            f"--region {options.region} names {len(codes)} respondents, and --issue forecasts one: name one, or write all hours of several "
            "with --hourly FILE.parquet"
        )
    return codes[0]


def _check_demand(data_dir: Path, region: str) -> None:
    """Check that the series of a respondent, where there are any, have demand.

    Raises:
        UsageError: they have none, as those of an authority that only generates.
    """
    there = (series_folder(data_dir) / region).is_dir()
    if there and "D" not in (found := available(data_dir, region).variables):
        raise UsageError(
            f"the series of {region} in {data_dir} have no demand (D) to forecast, only {', '.join(found)}; name another --region"
        )


def _is_trained(run: Path) -> bool:
    return any((run / name).exists() for name in ("result.json", "state.json"))


def _why_not_trained(options: argparse.Namespace, region: str, named: str) -> str | None:
    """Return why no trained model can forecast the day after an issue time, where the hourly regressions can; None: one may.

    Args:
        options: of the command line, with the issue time as a time.
        region: respondent.
        named: --issue as it was given. A time without a training is for `_load` to refuse.
    """
    if not _is_trained(options.run):
        return f"{options.run} holds no finished training" if named == TOMORROW else None
    if not (series_folder(options.data) / region).is_dir():
        return None
    last = available(options.data, region).years[-1]
    ends = hours_of_issue(region, options.issue).last > hour_number(f"{last}-12-31T23")
    if ends and parse_issue(options.issue).year <= last:  # a later issue time is refused: nothing before it is on disk
        return f"the series of {region} end with {last}, and the trained model reads DF of the day from them"
    return None


def _load(options: argparse.Namespace) -> TrainedModel:
    """Load the trained model; where there is none, say what forecasts without a training.

    Raises:
        CheckpointError: there is no finished training.
    """
    try:
        return load_model(options.run)
    except CheckpointError as error:
        if options.region is None or _is_trained(options.run):
            raise
        raise CheckpointError(
            f"{error}; with `--horizon {MAX_HORIZON}` the hourly regressions forecast {options.issue} without a training"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the flags; None reads them from `sys.argv`.
    """
    options = _parse(argv)

    def report(event: dict[str, Any], line: str) -> None:
        print(json.dumps(event) if options.json else line, file=sys.stderr, flush=True)

    def log(message: str) -> None:
        if not options.quiet:
            report({"event": "note", "text": message}, message)

    def fail(error: object, code: int) -> int:
        report({"event": "error", "text": str(error), "exit_code": code}, f"coordinator: {error}")
        return code

    try:
        result = _run(options, log)
    except IngestError as error:
        return fail(error, ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.FAILED)
    except OSError as error:
        return fail(
            f"{error.filename or options.data}: {error.strerror}; name a path that can be written", ExitCode.FAILED
        )
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again", ExitCode.INTERRUPTED)
    print(result)
    return 0


def _run(options: argparse.Namespace, log: Callable[[str], None]) -> str:
    """Forecast one issue time or write a table; return the text for stdout."""
    _check_values(options)
    region = _one_region(options) if options.hourly is None and options.region is not None else None
    check_there(options.data)
    options.run = options.run or options.data / "train"
    origin = ", ".join(manifest.origins_of(options.data)) or "of unknown origin"
    if options.hourly is not None:
        return write_file(options, origin, log)
    if region is None:
        return _write_table(options, origin, log)
    _check_demand(options.data, region)
    named = options.issue
    if named in NAMED:
        options.issue = resolve_issue(options.data, region, named, publication_of(options))
        meaning = "for the day after" if named == TOMORROW else "the end of"
        log(f"--issue {named} is {options.issue} local, {meaning} the newest demand of {region} in {options.data}")
    if is_hourly(options):
        answer = forecast_issue(options, region, origin, log)
    elif why := _why_not_trained(options, region, named):
        log(f"{why}: the hourly regressions forecast the day")
        answer = forecast_issue(options, region, origin, log, hours_of_issue(region, options.issue))
    else:
        answer = _trained(options, region, origin, log)
    if options.plot is not None:
        draw_fan_chart([answer], options.plot, origin)
    if options.out is not None:
        write_answer(answer, options.out)
        log(f"{options.out} holds the forecast in the form that `coordinator judge` reads")
    if options.json:
        return json.dumps(to_document(answer))
    return to_text(answer, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _write_table(options: argparse.Namespace, origin: str, log: Callable[[str], None]) -> str:
    """Write the trained model's forecasts of every hour of a period; return the text for stdout."""
    trained = _load(options)
    trained.check_publication(options.publication)
    store = trained.open_store(options.data, log)
    whole = Period(store.period(0).first, store.period(0).last)
    period = Period.parse(options.period, "period") if options.period else whole
    count = write_table(trained, store, period, options.table, origin, log)
    result = {"table": str(options.table), "rows": count}
    return json.dumps(result) if options.json else f"{count:,} rows in {options.table}"


def _trained(options: argparse.Namespace, region: str, origin: str, log: Callable[[str], None]) -> Answer:
    """Forecast the local day after an issue time with the trained model.

    Raises:
        UsageError: the model was not trained on the region, or hours are not on disk.
        IngestError: nothing can be said of the day.
    """
    hours = hours_of_issue(region, options.issue)  # before the model is loaded
    trained = _load(options)
    trained.check_publication(options.publication)
    store = trained.open_store(options.data, log, region)
    log(f"forecasting {region} with the trained model {trained.path}")
    forecast = predict(trained, store, region, hours)
    basis = basis_of(options.data, forecast, trained.publication, trained.reference)
    answer = Answer(
        region,
        options.issue,
        basis.issue,
        f"trained model {trained.path}",
        origin,
        str(trained.publication),
        forecast.hours,
        forecast.quantiles,
        forecast.operator.astype(np.float64),
        forecast.demand.astype(np.float64),
        np.empty((len(forecast.hours), 0)),
        basis.names,
        (*basis.reasons(trained.publication), *trained.seen(hours)),
        {"checkpoint": str(trained.path), "awaited": basis.awaited},
    )
    if not answer.known:
        raise IngestError(
            f"nothing can be said of {region} on the day after {options.issue}: {'; '.join(answer.reasons)}; "
            f"fetch them with `coordinator start --extract --update --data {quoted(options.data)}`"
        )
    return answer
