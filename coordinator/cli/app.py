"""`coordinator`: start a run, watch it, verify what it wrote. Try `coordinator start --extract`.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 usage, 4 authentication, 75
incomplete but resumable, 130 interrupted.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli import forecasts, series
from coordinator.cli.errors import ending, print_error
from coordinator.cli.help import Command, Group
from coordinator.cli.hints import next_steps
from coordinator.cli.keys import config_app, keys_app
from coordinator.cli.options import (
    AsJson,
    PageCommand,
    Quiet,
    existing_folder,
    folder_of,
    width_of_stdout,
    with_settings,
    with_stages,
)
from coordinator.stages.stage import STAGES, OutputMode
from coordinator.wire.exit_codes import ExitCode
from ingest.console import printable
from ingest.errors import UsageError, quoted

HELP = " ".join((__doc__ or "").split("\n\n")[1].split())  # rich would keep the ends of its lines

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")

Settings = Mapping[str, Any]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # here: it takes a twentieth of a second to load

        print(f"coordinator {version('ring-attention-energy')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options that stand before a command."""


@app.command(cls=Command, epilog="coordinator init")
def init(
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a commented settings file and a hostfile to fill in. Neither is needed for a run on this machine."""
    from coordinator.cli.init import first_command, write_templates

    paths = write_templates(out)
    if as_json:
        print(json.dumps({"written": [str(path) for path in paths]}))
    else:
        print(*paths, first_command(out), sep="\n")


@app.command(cls=PageCommand, epilog="coordinator start --extract --respondents PACW --start 2024-03 --end 2024-03")
@with_stages
@with_settings(
    *("data", "source", "respondents", "routes", "start", "end", "workers", "hostfile", "host-python", "host-data"),
    *("connections", "bind", "keys", "rate", "retries", "revise-days", "run", "ranks", "train-config"),
    *("control-config", "engine", "report-to"),
)
def start(
    settings: Settings,
    stages: set[str],
    update: Annotated[
        bool, typer.Option("--update", help="Extract only hours that are missing or may still be revised.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each stage would do, and why. No request, no file written.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Rebuild the journal from the manifests on disk.")] = False,
    http: Annotated[
        str,
        typer.Option(
            help="Serve a live page about the run [without a value: at 127.0.0.1:8787]. Off loopback it asks for a token.",
            metavar="[HOST:PORT]",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the selected stages in order. Completed work is skipped."""
    if update:
        stages = stages | {"extract"}
    if not stages:
        raise UsageError(
            "start: no stage selected. Try `coordinator start --extract --train --rollouts`, or one of them."
        )
    if rebuild and "extract" not in stages:
        raise UsageError("start: --rebuild belongs to the extraction: `coordinator start --extract --rebuild`.")
    folder = folder_of(settings)
    values = {**settings, "update": update, "rebuild": rebuild}
    chosen = [(entry.name, entry.load()) for entry in STAGES if entry.name in stages]
    planned = [  # all, before the first one runs
        (label, stage, options)
        for name, stage in chosen
        for label, options in (_extractions(values) if name == "extract" else [(name, stage.options_from(values))])
    ]
    if "extract" not in stages:
        from ingest.data_folder import check_series

        check_series(folder)
    if len(stages) > 1:
        from coordinator.stages.years import check_planned

        check_planned(folder, {name: options for name, _, options in planned}, settings["source"])
    import msgspec

    documents: dict[str, Any] = {}
    if dry_run:
        after = ""  # the earlier stage whose work changes what the next ones begin with
        for name, stage, options in planned:
            plan = stage.dry_run(options, after)
            documents[name] = msgspec.to_builtins(plan)
            after = after or (name if plan.has_work else "")
            if not as_json:
                print(plan.to_text())
        if as_json:
            _print_documents(documents)
        return
    mode = OutputMode(as_json, quiet)
    with _page_at(http, folder, mode):
        code = _run_stages(planned, documents, mode)
    if "extract 2 (eia)" in documents and not code:
        from ingest.cross_check import compare

        agreement = compare(folder)
        documents["agreement"] = msgspec.to_builtins(agreement)
        if not as_json:
            print(agreement)
    if as_json:
        _print_documents(documents, exit_code=int(code))
    if code:
        raise typer.Exit(code)
    if not as_json:
        print(next_steps(stages, settings))


def _run_stages(planned: Sequence[tuple[str, Any, Any]], documents: dict[str, Any], mode: OutputMode) -> ExitCode:
    """Run the stages in order until one fails; put the document of each under its name."""
    import msgspec

    for name, stage, options in planned:
        summary = stage.run(options, mode)
        documents[name] = msgspec.to_builtins(summary)
        if not mode.as_json and (text := stage.describe(summary)):
            print(text)
        if code := ExitCode(summary.exit_code):
            print_error(ending(name, summary.status, printable(summary.message), code), code, as_json=mode.as_json)
            return code
    return ExitCode.DONE


def _page_at(http: str, folder: Path, mode: OutputMode) -> AbstractContextManager[None]:
    """Return what serves the live page inside; nothing where `http` is empty."""
    if not http:
        return nullcontext()
    from coordinator.watch.access import parse_address
    from coordinator.watch.run import page_process

    return page_process(folder, parse_address(http), mode)


def _extractions(values: Settings) -> list[tuple[str, Any]]:
    """Return each extraction that a command line asks for, with its name. `--source auto` asks for several."""
    from coordinator.stages.extract.auto import is_auto, options_of
    from coordinator.stages.extract.plan import ExtractOptions

    if not is_auto(values["source"]):
        return [("extract", ExtractOptions.from_settings(values))]
    parts = options_of(values)
    return [(f"extract {number} ({one.source.kind})", one) for number, one in enumerate(parts, 1)]


def _print_documents(documents: Mapping[str, Any], **more: Any) -> None:
    """Print the document of one stage as it is, those of several under the names of the stages."""
    print(json.dumps(next(iter(documents.values())) if len(documents) == 1 else {**documents, **more}))


@app.command(cls=Command, epilog="coordinator follow --source eia --data real --respondents PACW,ERCO")
@with_settings(
    *("data", "source", "respondents", "routes", "start", "workers", "hostfile", "host-python", "host-data"),
    *("connections", "bind", "keys", "rate", "retries", "revise-days", "run", "engine"),
)
def follow(
    settings: Settings,
    then: Annotated[
        str, typer.Option("--then", metavar="forecast", help="forecast: issue the day's forecasts after a cycle.")
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Keep a data folder up to date: each hour what is new, each day what may have been revised; one line a cycle."""
    if then not in ("", "forecast"):
        raise UsageError(f"follow: --then {then!r} is unknown; the one thing to do afterwards is `--then forecast`.")
    folder = folder_of(settings)
    from coordinator.stages.extract.plan import ExtractOptions
    from coordinator.stages.follow.run import follow as follow_source
    from ingest.models import is_daily

    options = ExtractOptions.from_settings({**settings, "end": "", "update": True, "rebuild": False})
    if daily := [route for route in options.routes if is_daily(route)]:
        raise UsageError(
            f"follow: {', '.join(daily)} is not followed. Leave it out of --routes, and run `coordinator start --extract --update "
            f"--routes daily --data {quoted(folder)}` once a day."
        )
    run = (settings["run"] or folder / "train") if then else None
    outcome = follow_source(options, OutputMode(as_json, quiet), run)
    if outcome.status in ("done", "drain"):  # it was told to end, and no cycle was cut short
        return
    print_error(f"follow ended ({outcome.status}): {printable(outcome.message)}", outcome.exit_code, as_json=as_json)
    raise typer.Exit(outcome.exit_code)


@app.command(cls=Command, epilog="coordinator status --data data")
@with_settings("data", "keys")
def status(settings: Settings, as_json: AsJson = False) -> None:
    """Print what a running coordinator is doing; without one, what its data folder holds."""
    from coordinator.cli.status import describe, fetch_status
    from coordinator.stages.display import Steps

    folder = folder_of(settings)
    with closing(Steps("asking the coordinator", OutputMode(as_json))):
        found = fetch_status(folder, settings["keys"])
    print(json.dumps(found) if as_json else describe(found))


@app.command(cls=PageCommand, epilog="coordinator watch --data data")
@with_settings("data")
def watch(
    settings: Settings,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where to listen. Off loopback the page asks for a token (printed)."),
    ] = "127.0.0.1:8787",
    with_stdin: Annotated[bool, typer.Option("--with-stdin", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a live page about the runs in a data folder, read-only, until Ctrl-C."""
    import signal
    import sys

    from coordinator.watch.access import parse_address
    from coordinator.watch.run import serve

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # that of `main` says how to resume, and nothing is cut short

    def opened_at(url: str) -> None:
        print(json.dumps({"event": "page", "url": url}) if as_json else f"page: {url}", file=sys.stderr, flush=True)

    def say(line: str) -> None:
        print(json.dumps({"event": "note", "text": line}) if as_json else line, file=sys.stderr, flush=True)

    serve(folder_of(settings), parse_address(http), opened_at, say, with_stdin=with_stdin)


@app.command(cls=Command, epilog="coordinator clean --data data")
@with_settings("data")
def clean(
    settings: Settings,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what newer generations replace: pages fetched again since, earlier series, leftovers of killed processes."""
    from contextlib import ExitStack

    from coordinator.server.folder_lock import FolderLock
    from ingest import disk_use

    folder = folder_of(settings)
    if not (folder / "manifests").is_dir():
        raise UsageError(
            f"{folder} holds no run. Start one with `coordinator start --extract --data {quoted(folder)}`."
        )
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(FolderLock(folder))
        found = disk_use.replaced(folder)
        if not dry_run:
            disk_use.remove(folder, found)
    if as_json:
        kinds = [{"kind": one.kind, "items": len(one.paths), "bytes": one.bytes} for one in found]
        print(json.dumps({"data": str(folder), "removed": not dry_run, "kinds": kinds}))
        return
    word = "would be removed" if dry_run else "removed"
    lines = [f"{one.kind}: {len(one.paths):,} {word}, {one.bytes / 1e6:,.1f} MB" for one in found]
    print("\n".join(lines) or f"{folder} holds nothing that newer generations replace")


@app.command(cls=Command, epilog="coordinator doctor --data data")
@with_settings("data", "bind", "keys", "hostfile", "host-python", "host-data")
def doctor(settings: Settings, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Check this host (and every host in --hostfile) and print a fix for each problem. Exits with 1 if there are problems."""
    from coordinator.doctor import checks
    from coordinator.doctor.local import examine
    from coordinator.doctor.remote import examine_hosts
    from coordinator.stages.display import Steps
    from coordinator.workers.hostfile import hosts_from

    hosts = hosts_from(settings)
    with closing(Steps("checking this host", OutputMode(as_json, quiet))) as steps:
        findings = examine(settings["data"], settings["bind"], settings["keys"])
        if hosts is not None:
            steps.stage = f"checking {len(hosts.remote)} hosts"
            findings += examine_hosts(hosts, settings["keys"])
    report = checks.report(findings)
    print(json.dumps(report) if as_json else checks.describe(findings, width_of_stdout()))
    if not report["fine"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command(cls=Command, epilog="coordinator catalog --json")
@with_settings("data", "source", "rate")
def catalog(settings: Settings, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the respondents; with an EIA API as --source, ask it, and keep its list in the data folder for extractions."""
    import msgspec

    from coordinator.cli.catalog import listing_of
    from coordinator.stages.display import Steps
    from ingest.catalog_listing import describe

    with closing(Steps("asking for facets", OutputMode(as_json, quiet))) as steps:
        found = listing_of(folder_of(settings), settings["source"], settings["rate"], steps)
    print(json.dumps(msgspec.to_builtins(found)) if as_json else describe(found))


@app.command(cls=Command, epilog="coordinator balance --data data")
@with_settings("data")
def balance(settings: Settings, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Compare demand with generation less exports, and the two ends of each line; write values that agree to DATA/reconciled."""
    import msgspec

    from coordinator.stages.display import Steps

    folder = existing_folder(settings)
    with closing(Steps("balancing years", OutputMode(as_json, quiet))) as steps:
        from ingest import grid_balance  # here: it takes a second to load, which the steps show

        found = grid_balance.balance(folder, steps)
    print(json.dumps(msgspec.to_builtins(found)) if as_json else grid_balance.describe(found, folder))


for command, example in (*forecasts.COMMANDS, *series.COMMANDS):
    app.command(cls=Command, epilog=example)(command)
