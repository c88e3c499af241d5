"""The commands that run the forecaster's programs: forecast, judge, backtest. The coordinator itself never loads a model."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli.options import AsJson, Quiet, folder_of, with_settings
from coordinator.wire.exit_codes import ExitCode
from ingest.errors import UsageError

Settings = Mapping[str, Any]


@with_settings("data", "run")
def forecast(
    settings: Settings,
    region: Annotated[str | None, typer.Option(help="Respondent to forecast, e.g. ERCO.")] = None,
    issue: Annotated[
        str | None,
        typer.Option(
            help="Issue time, local: YYYY-MM-DDTHH; latest, the end of the newest demand on disk; or tomorrow, 10:00 on the day of that "
            "demand, for the day after. Neither looks at the clock. At 10 the trained model forecasts the next local day."
        ),
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="Hours ahead, 1 to 48, by the hourly regressions.")] = None,
    paths: Annotated[int, typer.Option(help="Scenarios of the hours ahead, by the hourly regressions.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the paths.")] = 0,
    hourly: Annotated[
        Path | None, typer.Option(help="Write hourly forecasts of every issue hour to this Parquet file.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write forecasts and embeddings of every hour to this Parquet file.")
    ] = None,
    period: Annotated[str | None, typer.Option(help="With --table, --hourly: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]].")] = None,
    publication: Annotated[
        str | None,
        typer.Option(
            help="When values are published: day-before, deadline, …. A model trained for another one is refused."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the forecast to this .parquet or .csv file, as judge reads it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a fan chart to this PNG file.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forecast a coming day with a trained model, or up to 48 hours from any hour without one; with --table or --hourly, every hour on disk."""
    one = region is not None and hourly is None
    if one + (table is not None) + (hourly is not None) != 1 or (one and issue is None):
        raise UsageError(
            "forecast: name --region and --issue for one issue time, or --table or --hourly FILE.parquet for all hours. "
            "`coordinator forecast --help` has an example."
        )
    given = {"region": region, "issue": issue, "table": table, "hourly": hourly, "period": period, "plot": plot}
    given |= {"horizon": None if horizon is None else str(horizon), "paths": str(paths), "seed": str(seed)}
    given |= {"publication": publication, "out": out}
    given |= {"data": folder_of(settings), "run": settings["run"]}
    # A worker's program: the coordinator itself never loads the model.
    command = [sys.executable, "-m", "worker.forecast"]
    command += [flag for flag, wanted in (("--json", as_json), ("--quiet", quiet)) if wanted]
    command += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    _run_program(command)


def _run_program(command: list[str]) -> None:
    """Run a worker's program to its end; it gets this process's streams, and its exit code becomes this one's."""
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C reaches this process alone, which ends it
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code:
        raise typer.Exit(code if code > 0 else ExitCode.FAILED)


@with_settings("data", "run")
def judge(
    settings: Settings,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Forecasts, CSV or .parquet: columns unique_id, ds, cutoff, and q0.1, q0.5, … or a model's.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Which model to judge, where the file has several.")] = "",
    publication: Annotated[
        str | None, typer.Option(help="What the baselines know: day-before (default), deadline, ….")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score anyone's forecasts, and find those that use hours after their cutoff. Exits with 1 if hours were used."""
    given = {"file": file, "model": model or None, "data": folder_of(settings), "run": settings["run"]}
    given["publication"] = publication
    command = [sys.executable, "-m", "worker.forecast.judge"]
    command += [flag for flag, wanted in (("--json", as_json), ("--quiet", quiet)) if wanted]
    command += [f"--{name}={value}" for name, value in given.items() if value is not None]
    _run_program(command)


@with_settings("data", "train-config")
def backtest(
    settings: Settings,
    first: Annotated[str, typer.Option("--from", metavar="YYYY-MM", help="First local month to forecast.")],
    last: Annotated[str, typer.Option("--to", metavar="YYYY-MM", help="Last one.")],
    respondents: Annotated[str, typer.Option(help="Codes to forecast, e.g. PACW,ERCO; default: all on disk.")] = "",
    model: Annotated[
        str, typer.Option(metavar="linear|network", help="Model to fit before each walk: linear or network.")
    ] = "linear",
    every: Annotated[
        str, typer.Option(metavar="month|quarter|year", help="How often. Empty: month; of the network: quarter.")
    ] = "",
    publication: Annotated[
        str | None, typer.Option(help="What each forecast knows: day-before (default), deadline, ….")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Table, .parquet or .csv, as judge reads it [default: DATA/backtest/MODEL.parquet].",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Retrain on a schedule, walk forward over past months, and score what would have been forecast. Finished walks are kept."""
    given: dict[str, Any] = {
        "from": first,
        "to": last,
        "respondents": respondents or None,
        "model": model,
        "every": every or None,
    }
    config = settings["train-config"] if model == "network" else None  # the environment may name one
    given |= {"out": out, "data": folder_of(settings), "train-config": config, "publication": publication}
    command = [sys.executable, "-m", "worker.forecast.backtest"]
    command += [flag for flag, wanted in (("--json", as_json), ("--quiet", quiet)) if wanted]
    command += [f"--{name}={value}" for name, value in given.items() if value is not None]
    _run_program(command)


# Each with its example, in the order of the help.
COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (forecast, "coordinator forecast --region PACW --issue 2025-08-12T10"),
    (judge, "coordinator judge theirs.csv --data data"),
    (backtest, "coordinator backtest --from 2024-07 --to 2024-12"),
)
