#!/usr/bin/env python3
"""Run the whole extraction and report counted figures: `uv run scripts/dev/run_full_extraction_monitored.py [--test]`.

For users of the earlier tool: the same report (period, mode, estimated time; then files, records, duration, rows per second,
share of the API's policy ceiling). Every figure is counted except the estimated time, which is labelled as an estimate.
Any option of `coordinator start --extract` may follow, e.g. `--source eia --data real`.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import msgspec

from coordinator.stages.display import RunView, headline
from coordinator.wire.exit_codes import ExitCode

CEILING_ROWS_PER_S = 12_500  # EIA's policy: 2.5 requests a second sustained, 5,000 rows each
TEST_PERIOD = ("--start", "2024-01", "--end", "2024-01")
REFUSED = {  # option → why the script cannot pass it on
    "--train": "the script runs the extraction only: `coordinator start --train` afterwards",
    "--rollouts": "the script runs the extraction only: `coordinator start --rollouts` afterwards",
    "--dry-run": "the script prints the plan's figures first, then runs it: `coordinator start --extract --dry-run`",
    "--json": "the script prints a report for readers: `coordinator start --extract --json`",
}


def options_from(words: list[str]) -> list[str]:
    """Return the options for `coordinator start --extract`; end the program with exit code 2 for one that has no effect here."""
    parser = argparse.ArgumentParser(
        prog="run_full_extraction_monitored.py",
        description="Run the whole extraction and report counted figures. Any other option is one of `coordinator start "
        "--extract`, e.g. --source eia --data real; `coordinator start --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--test", action="store_true", help="January 2024 only")
    own, options = parser.parse_known_args(words)
    names = [word.partition("=")[0] for word in options]
    for name in names:
        if name in REFUSED:
            parser.error(f"{name}: {REFUSED[name]}")
    if own.test and (given := [name for name in names if name in ("--start", "--end")]):
        parser.error(f"--test means January 2024; leave out {given[0]}, or leave out --test")
    return [*options, *(TEST_PERIOD if own.test else ())]


def coordinator(*arguments: str) -> tuple[dict, int]:
    """Run `coordinator` with `--json`, show its progress as text on stderr, and return its result and exit code."""
    command = [sys.executable, "-m", "coordinator", *arguments, "--json"]
    with tempfile.TemporaryFile("w+") as stdout:  # a pipe that nobody reads meanwhile would hold up a long result
        with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                print(as_text(line.rstrip("\n")), file=sys.stderr, flush=True)
        stdout.seek(0)
        result = stdout.read()
    if not result:  # the error has been shown
        sys.exit(process.returncode)
    return json.loads(result), process.returncode


def as_text(line: str) -> str:
    """Return one of the coordinator's JSON lines as text for readers; any other line as it is."""
    try:
        event = json.loads(line)
        if event["event"] == "progress":
            return headline(msgspec.convert(event, RunView))
        return str(event["text"])
    except (ValueError, KeyError, TypeError, msgspec.ValidationError):
        return line


def main() -> int:
    """Run the extraction and print the report; return the coordinator's exit code."""
    options = options_from(sys.argv[1:])
    plan, _ = coordinator("start", "--extract", "--dry-run", *options)
    print(f"Period          {plan['start']} to {plan['end']} (UTC, hour-ending)")
    print(f"Mode            {'test' if '--test' in sys.argv else 'full'}, source {plan['source']}")
    print(
        f"Estimated time  at least {plan['policy_seconds']:.0f} s at EIA's policy ceiling ({plan['requests']} requests planned)",
        flush=True,
    )
    summary, code = coordinator("start", "--extract", *options)
    rate = summary["new_rows"] / summary["seconds"] if summary["seconds"] else 0.0
    print(f"Files created   {summary['new_files']}")
    print(f"Records         {summary['new_rows']:,} verified in this run; {summary['rows']:,} in the data folder")
    print(f"Duration        {summary['seconds']:.1f} s")
    print(f"Rows per second {rate:,.0f}")
    print(
        f"API ceiling     {100 * rate / CEILING_ROWS_PER_S:.0f}% of {CEILING_ROWS_PER_S:,} rows/s (data: {', '.join(summary['origins'])})"
    )
    if code:
        print(f"Not complete    exit code {int(ExitCode(code))}: {summary['message']}")
    return code


if __name__ == "__main__":
    sys.exit(main())
