"""The commands that read the series of a data folder: verify, export, impute, report."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli.errors import print_error
from coordinator.cli.options import AsJson, Quiet, existing_folder, folder_of, with_settings
from coordinator.stages.stage import OutputMode
from coordinator.wire.exit_codes import ExitCode
from ingest.console import printable

Settings = Mapping[str, Any]


@with_settings("data")
def verify(settings: Settings, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Verify every hash, row, key and hour on disk again. Exits with 1 if anything differs."""
    from coordinator.stages.display import Steps

    with closing(Steps("verifying manifests", OutputMode(as_json, quiet))) as steps:
        from ingest.verify import verify as verify_folder  # here: it takes a second to load, which the steps show

        report = verify_folder(folder_of(settings), steps)
    print(json.dumps(report.to_json()) if as_json else report.to_text(quiet=quiet))
    if not report.whole:
        raise typer.Exit(ExitCode.FAILED)


@with_settings("data")
def export(
    settings: Settings,
    out: Annotated[Path, typer.Option(help="File to write; its suffix names the format: .csv, .csv.gz or .parquet.")],
    respondents: Annotated[str, typer.Option(help="Codes to export, e.g. PACW,ERCO; default: all on disk.")] = "",
    variables: Annotated[str, typer.Option(help="Variables to export, e.g. D,DF; default: all on disk.")] = "",
    period: Annotated[str, typer.Option(help="Hours to export, UTC: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]].")] = "",
    local_time: Annotated[bool, typer.Option("--local-time", help="Add a column with the local time.")] = False,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="Add a column for each variable: why a cell is empty, or ok, or suspect.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write series to one CSV or Parquet file: a row for each respondent and hour, a column for each variable."""
    from coordinator.stages.display import Steps

    folder = existing_folder(settings)
    with closing(Steps("exporting", OutputMode(as_json, quiet))) as steps:
        from ingest.export import ExportRequest, export  # here: it takes a second to load, which the steps show
        from ingest.settings import parse_codes

        names = tuple(name.strip() for name in variables.split(",") if name.strip())
        request = ExportRequest(parse_codes(respondents), names, period, local_time, reasons)
        done = export(folder, out, request, steps)
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(f"{done.path}: {done.rows:,} rows, {done.bytes / 1e6:,.1f} MB, columns {', '.join(done.columns)}")


@with_settings("data", "workers")
def impute(settings: Settings, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Estimate missing demand from earlier weeks, the forecast and other series. The estimates have files of their own."""
    from coordinator.stages.display import Steps

    folder = existing_folder(settings)
    with closing(Steps("imputing", OutputMode(as_json, quiet))) as steps:
        from ingest.imputed import write_estimates  # here: it takes a second to load, which the steps show

        done = write_estimates(folder, settings["workers"], steps)
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(f"{done.cells:,} hours of demand estimated, in {len(done.files)} files under {folder}/imputed")


@with_settings("data")
def report(
    settings: Settings,
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: DATA/report.html].", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about the runs in a data folder."""
    from coordinator.stages.display import Steps

    folder = existing_folder(settings)
    with closing(Steps("reading the runs", OutputMode(as_json, quiet))) as steps:
        from coordinator.report import build  # here: it takes a second to load, which the steps show

        made = build.report(folder, out or folder / "report.html", steps)
    print(json.dumps(made) if as_json else build.describe(made))
    if made["damaged"]:
        text = f"the report lacks what can't be read: {printable('; '.join(made['damaged']))}"
        raise typer.Exit(print_error(text, ExitCode.FAILED, as_json=as_json))


# Each with its example, in the order of the help.
COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (verify, "coordinator verify --data data"),
    (export, "coordinator export --out pacw.csv --respondents PACW --variables D,DF --period 2024"),
    (impute, "coordinator impute --data data --workers 2"),
    (report, "coordinator report --out report.html"),
)
