"""`coordinator`: start a run, look at it, verify what it wrote. Try `coordinator start --extract`.

Results go to stdout, narration to stderr. Exit codes: 0 done, 1 failed, 2 usage, 4 authentication, 75 incomplete but
resumable, 130 interrupted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from coordinator.cli.errors import print_error
from coordinator.cli.help import Command, Group
from coordinator.cli.keys import config_app, keys_app
from coordinator.cli.options import AsJson, Bind, Data, Keys, Quiet, folder_of, option, settings_of, width_of_stdout
from coordinator.cli.settings import check_toml
from coordinator.stages.display import Steps
from coordinator.wire.exit_codes import ExitCode
from ingest.errors import UsageError

HELP = " ".join((__doc__ or "").split("\n\n")[1].split())  # rich would keep the ends of its lines

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")


@app.command(
    "start", cls=Command, epilog="coordinator start --extract --respondents PACW --start 2024-03 --end 2024-03"
)
def start_(
    extract: Annotated[bool, typer.Option("--extract", help="fetch, prove and build the hourly series")] = False,
    train: Annotated[bool, typer.Option("--train", help="train the forecaster over a ring of the workers")] = False,
    rollouts: Annotated[
        bool, typer.Option("--rollouts", help="train the control policy on the workers, and judge it")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="ask only for what is missing or may still be revised")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what each stage would do, and why; ask nothing, write nothing")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="make the journal again from the manifests on disk")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data: Data = None,
    source: Annotated[str | None, option("source")] = None,
    respondents: Annotated[str | None, option("respondents")] = None,
    start: Annotated[str | None, option("start")] = None,
    end: Annotated[str | None, option("end")] = None,
    workers: Annotated[str | None, option("workers")] = None,
    hostfile: Annotated[str | None, option("hostfile")] = None,
    host_python: Annotated[str | None, option("host-python")] = None,
    host_data: Annotated[str | None, option("host-data")] = None,
    connections: Annotated[str | None, option("connections")] = None,
    bind: Bind = None,
    keys: Keys = None,
    rate: Annotated[str | None, option("rate")] = None,
    retries: Annotated[str | None, option("retries")] = None,
    revise_days: Annotated[str | None, option("revise-days")] = None,
    run: Annotated[str | None, option("run")] = None,
    ranks: Annotated[str | None, option("ranks")] = None,
    train_config: Annotated[str | None, option("train-config")] = None,
    control_config: Annotated[str | None, option("control-config")] = None,
) -> None:
    """Run the stages asked for, one after the other; each skips what is proved already."""
    if not (extract or update or train or rollouts):
        raise UsageError(
            "start: no stage was named. Try `coordinator start --extract --train --rollouts`, or one of them."
        )
    if rebuild and not (extract or update):
        raise UsageError("start: --rebuild belongs to the extraction: `coordinator start --extract --rebuild`.")
    settings = settings_of(
        data=data,
        source=source,
        respondents=respondents,
        start=start,
        end=end,
        workers=workers,
        hostfile=hostfile,
        host_python=host_python,
        host_data=host_data,
        connections=connections,
        bind=bind,
        keys=keys,
        rate=rate,
        retries=retries,
        revise_days=revise_days,
        run=run,
        ranks=ranks,
        train_config=train_config,
        control_config=control_config,
    )
    values = {name: entry.value for name, entry in settings.items()}
    folder = folder_of(settings)
    # Before an hour of extraction finds them wrong.
    for name in ("train-config", "control-config"):
        check_toml(name, values[name])
    from coordinator.cli import dry_run as intent
    from coordinator.stages import (
        extract as extract_stage,  # here, since a wrong command line need not wait for these to load
    )
    from coordinator.stages.rollouts import stage as rollouts_stage
    from coordinator.stages.train import stage as train_stage
    from ingest.data_folder import check_series

    extraction = extract_stage.options_from(values, update=update, rebuild=rebuild) if extract or update else None
    training = train_stage.options_from(values) if train else None
    control = rollouts_stage.options_from(values) if rollouts else None
    if extraction is None:
        check_series(folder)
    if dry_run:
        plans = intent.plans(extraction, training, control)
        print(
            json.dumps(next(iter(plans.values())) if len(plans) == 1 else plans) if as_json else intent.describe(plans)
        )
        return
    summaries: dict[str, dict[str, Any]] = {}
    stages: dict[str, tuple[Any, Any]] = {
        "extract": (extract_stage, extraction),
        "train": (train_stage, training),
        "rollouts": (rollouts_stage, control),
    }
    for stage, (module, options) in stages.items():
        if options is None or any(summary["exit_code"] for summary in summaries.values()):
            continue
        summary = summaries[stage] = module.run(options, as_json=as_json, quiet=quiet)
        if not as_json and (text := module.describe_summary(summary)):
            print(text)
        if summary["exit_code"]:
            message = f"{stage} is not complete ({summary['status']}): {summary['message']}"
            print_error(message, summary["exit_code"], as_json=as_json)
    code = max(summary["exit_code"] for summary in summaries.values())
    if as_json:
        print(json.dumps(next(iter(summaries.values())) if len(summaries) == 1 else {**summaries, "exit_code": code}))
    if code:
        raise typer.Exit(code)


@app.command(cls=Command, epilog="coordinator status --data data")
def status(data: Data = None, keys: Keys = None, as_json: AsJson = False) -> None:
    """What a running coordinator is doing, asked from another terminal; else what its journal says."""
    from coordinator.cli import status as look

    settings = settings_of(data=data, keys=keys)
    folder = folder_of(settings)
    with closing(Steps("asking the coordinator", as_json=as_json, quiet=False)):
        snapshot = look.status(folder, settings["keys"].value)
    print(json.dumps(snapshot) if as_json else look.describe(snapshot))


@app.command(cls=Command, epilog="coordinator doctor --data data")
def doctor(
    data: Data = None,
    bind: Bind = None,
    keys: Keys = None,
    hostfile: Annotated[str | None, option("hostfile")] = None,
    host_python: Annotated[str | None, option("host-python")] = None,
    host_data: Annotated[str | None, option("host-data")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What this host, and with --hostfile every other, has and lacks, each with its fix. Exit code 1 when anything is to be mended."""
    from coordinator.doctor import checks as diagnosis
    from coordinator.doctor import local as checks
    from coordinator.doctor.remote import examine_hosts
    from coordinator.workers.hostfile import hosts_from

    settings = settings_of(
        data=data, bind=bind, keys=keys, hostfile=hostfile, host_python=host_python, host_data=host_data
    )
    values = {name: entry.value for name, entry in settings.items()}
    hosts = hosts_from(values)
    with closing(Steps("looking at this host", as_json=as_json, quiet=quiet)) as steps:
        findings = checks.examine(values["data"], values["bind"], values["keys"])
        if hosts is not None:
            steps.stage = f"visiting {len(hosts.remote)} hosts"
            findings += examine_hosts(hosts, values["keys"])
    report = diagnosis.report(findings)
    print(json.dumps(report) if as_json else diagnosis.describe(findings, width_of_stdout()))
    if not report["fine"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command(cls=Command, epilog="coordinator forecast --region PACW --issue 2025-08-12T10")
def forecast(
    region: Annotated[str | None, typer.Option(help="respondent to forecast, e.g. ERCO")] = None,
    issue: Annotated[
        str | None, typer.Option(help="issue time YYYY-MM-DDT10, local: forecasts the next local day")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="write forecasts and embeddings of every hour to this Parquet file")
    ] = None,
    period: Annotated[str | None, typer.Option(help=escape("with --table: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]]"))] = None,
    plot: Annotated[Path | None, typer.Option(help="draw a fan chart to this PNG file")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data: Data = None,
    run: Annotated[str | None, option("run")] = None,
) -> None:
    """Quantiles of a coming day from a trained run, or with --table of all hours on disk."""
    if (table is None) == (region is None) or (region is not None and issue is None):
        raise UsageError(
            "forecast: name --region and --issue for one day, or --table FILE.parquet for all hours. "
            "`coordinator forecast --help` has an example."
        )
    settings = settings_of(data=data, run=run)
    given = {"region": region, "issue": issue, "table": table, "period": period, "plot": plot}
    given |= {"data": folder_of(settings), "run": settings["run"].value}
    # A worker's program: the coordinator itself never loads the model.
    command = [
        sys.executable,
        "-m",
        "worker.forecast",
        *(["--json"] if as_json else []),
        *(["--quiet"] if quiet else []),
    ]
    command += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C reaches this process alone, which ends it
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code:
        raise typer.Exit(code if code > 0 else ExitCode.FAILED)


@app.command(cls=Command, epilog="coordinator verify --data data")
def verify(data: Data = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Prove everything on disk again: every hash, row, key and hour. Exit code 1 when anything differs."""
    with closing(Steps("proving manifests", as_json=as_json, quiet=quiet)) as steps:
        from ingest.verify import verify as prove  # takes a second to load

        report = prove(folder_of(settings_of(data=data)), steps)
    print(json.dumps(report.to_json()) if as_json else report.to_text())
    if not report.whole:
        raise typer.Exit(ExitCode.FAILED)


@app.command(cls=Command, epilog="coordinator report --out report.html")
def report(
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help=escape("file to write [default: DATA/report.html]"), show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """One HTML page of what the runs left in a data folder."""
    with closing(Steps("reading what the runs left", as_json=as_json, quiet=quiet)) as steps:
        from coordinator.report import build  # takes a second to load

        folder = folder_of(settings_of(data=data))
        made = build.report(folder, out or folder / "report.html", steps)
    print(json.dumps(made) if as_json else build.describe(made))
