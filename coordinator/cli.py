"""`coordinator`: start a run, look at it, verify what it wrote. Try `coordinator start --extract`.

Results go to stdout, narration to stderr. Exit codes: 0 done, 1 failed, 2 usage, 4 authentication, 75 incomplete but
resumable, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator import curve
from coordinator.config import SETTINGS, Resolved, resolve
from ingest.errors import AuthenticationError, IngestError, StorageError, UsageError

EXIT_FAILED, EXIT_USAGE, EXIT_AUTHENTICATION, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 2, 4, 75, 130

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="CURVE keys for workers on other hosts.")
config_app = typer.Typer(no_args_is_help=True, help="Settings and where each came from.")
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")


def _option(name: str, *extra: str) -> Any:
    setting = next(s for s in SETTINGS if s.name == name)
    said = escape(f"{setting.help} [default: {setting.default}]")  # brackets would be markup
    return typer.Option(f"--{name}", *extra, help=said, show_default=False)


Data = Annotated[str | None, _option("data")]
Keys = Annotated[str | None, _option("keys")]
Bind = Annotated[str | None, _option("bind")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, JSON lines on stderr")]


def _settings(**flags: Any) -> dict[str, Resolved]:
    return resolve({name.replace("_", "-"): value for name, value in flags.items()}, os.environ, Path.cwd())


@app.command("start")
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
        bool, typer.Option("--dry-run", help="print the plan and its number of requests; fetch nothing")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="make the journal again from the manifests on disk")
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors and the result")] = False,
    data: Data = None,
    source: Annotated[str | None, _option("source")] = None,
    respondents: Annotated[str | None, _option("respondents")] = None,
    start: Annotated[str | None, _option("start")] = None,
    end: Annotated[str | None, _option("end")] = None,
    workers: Annotated[str | None, _option("workers")] = None,
    hostfile: Annotated[str | None, _option("hostfile")] = None,
    host_python: Annotated[str | None, _option("host-python")] = None,
    host_data: Annotated[str | None, _option("host-data")] = None,
    connections: Annotated[str | None, _option("connections")] = None,
    bind: Bind = None,
    keys: Keys = None,
    rate: Annotated[str | None, _option("rate")] = None,
    retries: Annotated[str | None, _option("retries")] = None,
    revise_days: Annotated[str | None, _option("revise-days")] = None,
    run: Annotated[str | None, _option("run")] = None,
    ranks: Annotated[str | None, _option("ranks")] = None,
    train_config: Annotated[str | None, _option("train-config")] = None,
    control_config: Annotated[str | None, _option("control-config")] = None,
) -> None:
    """Run the stages asked for, one after the other, e.g. `coordinator start --extract --train --rollouts`."""
    from coordinator import extract as extract_stage
    from coordinator import rollouts as rollouts_stage
    from coordinator import train as train_stage

    if not (extract or update or train or rollouts):
        raise UsageError(
            "start: no stage was named. Try `coordinator start --extract --train --rollouts`, or one of them."
        )
    settings = _settings(
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
    # Before an hour of extraction finds them wrong.
    training = train_stage.options_from(values) if train else None
    control = rollouts_stage.options_from(values) if rollouts else None
    summaries: dict[str, dict[str, Any]] = {}
    if extract or update:
        options = extract_stage.options_from(values, update=update, rebuild=rebuild)
        if dry_run:
            plan = extract_stage.dry_run(options)
            print(json.dumps(plan) if as_json else extract_stage.describe_plan(plan))
            return
        summaries["extract"] = extract_stage.run(options, as_json=as_json, quiet=quiet)
        if not as_json:
            print(extract_stage.describe_summary(summaries["extract"]))
    elif dry_run or rebuild:
        raise UsageError("start: --dry-run and --rebuild belong to --extract.")
    if training is not None and not any(summary["exit_code"] for summary in summaries.values()):
        summaries["train"] = train_stage.run(training, as_json=as_json, quiet=quiet)
        if not as_json:
            print(train_stage.describe_summary(summaries["train"]))
    if control is not None and not any(summary["exit_code"] for summary in summaries.values()):
        summaries["rollouts"] = rollouts_stage.run(control, as_json=as_json, quiet=quiet)
        if not as_json:
            print(rollouts_stage.describe_summary(summaries["rollouts"]))
    code = max(summary["exit_code"] for summary in summaries.values())
    if as_json:
        print(json.dumps(next(iter(summaries.values())) if len(summaries) == 1 else {**summaries, "exit_code": code}))
    if code:
        raise typer.Exit(code)


@app.command()
def status(data: Data = None, keys: Keys = None, as_json: AsJson = False) -> None:
    """What a running coordinator is doing, asked from another terminal; else what its journal says."""
    from coordinator import look

    settings = _settings(data=data, keys=keys)
    snapshot = look.status(settings["data"].value, settings["keys"].value)
    print(json.dumps(snapshot) if as_json else look.describe(snapshot))


@app.command()
def doctor(
    data: Data = None,
    bind: Bind = None,
    keys: Keys = None,
    hostfile: Annotated[str | None, _option("hostfile")] = None,
    host_python: Annotated[str | None, _option("host-python")] = None,
    host_data: Annotated[str | None, _option("host-data")] = None,
    as_json: AsJson = False,
) -> None:
    """What this host, and with --hostfile every other, has and lacks, each with its fix. Exit code 1 when anything is to be mended."""
    from coordinator import diagnosis
    from coordinator import doctor as checks
    from coordinator.doctor_hosts import examine_hosts
    from coordinator.hostfile import hosts_from

    settings = _settings(
        data=data, bind=bind, keys=keys, hostfile=hostfile, host_python=host_python, host_data=host_data
    )
    values = {name: entry.value for name, entry in settings.items()}
    hosts = hosts_from(values)
    findings = checks.examine(values["data"], values["bind"], values["keys"])
    if hosts is not None:
        findings += examine_hosts(hosts, values["keys"])
    report = diagnosis.report(findings)
    print(json.dumps(report) if as_json else diagnosis.describe(findings))
    if not report["fine"]:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def forecast(
    region: Annotated[str | None, typer.Option(help="respondent to forecast, e.g. ERCO")] = None,
    issue: Annotated[
        str | None, typer.Option(help="issue time YYYY-MM-DDT10, local: forecasts the next local day")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="write forecasts and embeddings of every hour to this Parquet file")
    ] = None,
    period: Annotated[str | None, typer.Option(help="with --table: YYYY[-MM[-DD]][:YYYY[-MM[-DD]]]")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw a fan chart to this PNG file")] = None,
    as_json: AsJson = False,
    data: Data = None,
    run: Annotated[str | None, _option("run")] = None,
) -> None:
    """Quantiles of a coming day from a trained run, e.g. `coordinator forecast --region ERCO --issue 2019-08-12T10`."""
    settings = _settings(data=data, run=run)
    given = {"region": region, "issue": issue, "table": table, "period": period, "plot": plot}
    given |= {"data": settings["data"].value, "run": settings["run"].value}
    # A worker's program: the coordinator itself never loads the model.
    command = [sys.executable, "-m", "worker.forecast", *(["--json"] if as_json else [])]
    command += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)


@app.command()
def verify(data: Data = None, as_json: AsJson = False) -> None:
    """Prove everything on disk again: every hash, row, key and hour. Exit code 1 when anything differs."""
    from ingest.verify import verify as prove

    report = prove(_settings(data=data)["data"].value)
    print(json.dumps(report.to_json()) if as_json else report.to_text())
    if not report.whole:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def report(
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help=escape("file to write [default: DATA/report.html]"), show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One HTML page of what the runs left in a data folder, e.g. `coordinator report --out report.html`."""
    from coordinator.report import make

    folder = _settings(data=data)["data"].value
    made = make.report(folder, out or folder / "report.html")
    print(json.dumps(made) if as_json else make.describe(made))


@keys_app.command("init")
def keys_init(keys: Keys = None) -> None:
    """Make the coordinator's own key pair, once."""
    print(curve.make_coordinator_key(_settings(keys=keys)["keys"].value))


@keys_app.command("add")
def keys_add(name: str, keys: Keys = None) -> None:
    """Make a key file for the worker NAME and put it on the allow-list. Copy the file to its host: `worker --key FILE`."""
    print(curve.add_worker(_settings(keys=keys)["keys"].value, name))


@keys_app.command("revoke")
def keys_revoke(name: str, keys: Keys = None) -> None:
    """Take the worker NAME off the allow-list and delete its key file. A running coordinator cuts it off within a second."""
    curve.revoke_worker(_settings(keys=keys)["keys"].value, name)


@keys_app.command("list")
def keys_list(keys: Keys = None) -> None:
    """The workers that may connect, with their public keys."""
    for name, public in sorted(curve.read_allowed(_settings(keys=keys)["keys"].value).items()):
        print(f"{name}\t{public}")


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Every setting, its value, and where it came from (flag, environment, cluster.toml, default)."""
    settings = _settings()
    if as_json:
        print(
            json.dumps({name: {"value": str(entry.value), "origin": entry.origin} for name, entry in settings.items()})
        )
        return
    table = Table("setting", "value", "from", "variable", box=None)
    for setting in SETTINGS:
        entry = settings[setting.name]
        value = ",".join(map(str, entry.value)) if isinstance(entry.value, tuple) else str(entry.value)
        shown = str(setting.default) if entry.value is None else value
        table.add_row(setting.name, shown, entry.origin, setting.variable)
    Console().print(table)


def main() -> None:
    """Entry point: our own errors become one line on stderr and an exit code; typer answers usage errors itself."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except (IngestError, curve.CurveError) as error:
        print(f"coordinator: {error}", file=sys.stderr)
        sys.exit(exit_code_of(error))


def exit_code_of(error: Exception) -> int:
    """Exit code of an error of ingest's tree."""
    if isinstance(error, AuthenticationError):
        return EXIT_AUTHENTICATION
    if isinstance(error, UsageError | curve.CurveError):
        return EXIT_USAGE
    return EXIT_INCOMPLETE if isinstance(error, StorageError) else EXIT_FAILED
