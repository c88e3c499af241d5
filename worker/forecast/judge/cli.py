"""Command line of the judge of forecasts; `coordinator judge` runs it.

    python -m worker.forecast.judge --file theirs.csv --data data [--model NAME] [--run data/train] [--publication deadline] [--json]

The result goes to stdout; messages and errors go to stderr, as JSON lines with `--json`.
Exit codes: 0 nothing found, 1 the file uses hours after its cutoff, 2 usage, 130 Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.wire.exit_codes import ExitCode
from ingest.errors import IngestError, UsageError
from ingest.publication import DEFAULT, Publication
from worker.argparse_errors import Parser
from worker.forecast.judge.submission import read_submission
from worker.forecast.judge.verdict import describe, judge

PUBLICATION_HELP = f"what the baselines know: day-before, deadline or 1h,-1T10,local (default: {DEFAULT})"
OPTIONS: dict[str, dict[str, Any]] = {
    "--file": {"type": Path, "required": True, "metavar": "FILE", "help": "forecasts: CSV or .parquet"},
    "--data": {"type": Path, "default": Path("data"), "metavar": "DIR", "help": "data folder (default: data)"},
    "--run": {"type": Path, "metavar": "DIR", "help": "finished run to compare with (default: DATA/train)"},
    "--model": {"default": "", "metavar": "NAME", "help": "which model, where the file has several"},
    "--publication": {"default": str(DEFAULT), "metavar": "P", "help": PUBLICATION_HELP},
    "--json": {"action": "store_true", "help": "one JSON object on stdout, JSON lines on stderr"},
    "--quiet": {"action": "store_true", "help": "print only errors and the result"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the flags; None reads them from `sys.argv`.
    """
    example = "python -m worker.forecast.judge --file theirs.csv --data data"
    options = Parser("python -m worker.forecast.judge", "Scores of anyone's forecasts.", example, OPTIONS).parse_args(
        argv
    )

    def report(event: dict[str, Any], line: str) -> None:
        print(json.dumps(event) if options.json else line, file=sys.stderr, flush=True)

    def fail(error: object, code: int) -> int:
        report({"event": "error", "text": str(error), "exit_code": code}, f"coordinator: {error}")
        return code

    try:
        return _run(options, lambda text: None if options.quiet else report({"event": "note", "text": text}, text))
    except IngestError as error:
        return fail(error, ExitCode.USAGE if isinstance(error, UsageError) else ExitCode.FAILED)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again", ExitCode.INTERRUPTED)


def _run(options: argparse.Namespace, log: Any) -> int:
    """Judge the file and print the verdict."""
    verdict = judge(
        read_submission(options.file, options.model),
        options.data,
        options.run or options.data / "train",
        log,
        Publication.parse(options.publication),
    )
    if options.json:
        print(json.dumps({"file": str(options.file), **verdict.to_json()}))
    else:
        print("\n".join(describe(verdict, options.file)))
    return ExitCode.FAILED if verdict.peeks else ExitCode.DONE
