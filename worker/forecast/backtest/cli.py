"""Command line of backtests; `coordinator backtest` runs it.

    python -m worker.forecast.backtest --from 2019-01 --to 2019-12 --data data [--respondents PACW,ERCO] [--every month]
        [--model linear|network] [--publication deadline] [--train-config FILE.toml] [--out FILE.parquet] [--json]

The summary goes to stdout; messages and errors go to stderr, as JSON lines with `--json`.
Exit codes: 0 done, 1 failed, or the judge finds hours used after a cutoff, 2 usage, 75 a training stopped and resumes, 130 Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator.wire.exit_codes import ExitCode
from ingest.catalog import check_respondents
from ingest.errors import IngestError, UsageError
from ingest.publication import DEFAULT, Publication
from ingest.settings import parse_codes
from worker.argparse_errors import Parser
from worker.forecast.backtest.rows import check_suffix
from worker.forecast.backtest.run import FOLDER, Request, backtest
from worker.forecast.backtest.schedule import EVERY, month_number
from worker.forecast.judge.verdict import describe

PUBLICATION_HELP = f"what each forecast knows: day-before, deadline or 1h,-1T10,local (default: {DEFAULT})"
MODELS = {"linear": "month", "network": "quarter"}  # by name, how often each is fitted unless asked otherwise
OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "default": Path("data"), "metavar": "DIR", "help": "data folder (default: data)"},
    "--from": {"required": True, "dest": "first", "metavar": "YYYY-MM", "help": "first local month to forecast"},
    "--to": {"required": True, "dest": "last", "metavar": "YYYY-MM", "help": "last one"},
    "--respondents": {"default": "", "metavar": "CODES", "help": "comma-separated (default: all on disk)"},
    "--model": {"default": "linear", "metavar": "|".join(MODELS), "help": "what is fitted (default: linear)"},
    "--every": {"metavar": "|".join(EVERY), "help": "how often it is fitted (default: month; of the network: quarter)"},
    "--publication": {"default": str(DEFAULT), "metavar": "P", "help": PUBLICATION_HELP},
    "--train-config": {"type": Path, "metavar": "FILE", "help": "TOML settings of the network's training"},
    "--out": {"type": Path, "metavar": "FILE", "help": ".parquet or .csv (default: DATA/backtest/MODEL.parquet)"},
    "--json": {"action": "store_true", "help": "one JSON object on stdout, JSON lines on stderr"},
    "--quiet": {"action": "store_true", "help": "print only errors and the result"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the flags; None reads them from `sys.argv`.
    """
    example = "python -m worker.forecast.backtest --from 2019-01 --to 2019-12 --data data"
    options = Parser(
        "python -m worker.forecast.backtest", "Retrain on a schedule and walk forward.", example, OPTIONS
    ).parse_args(argv)

    def report(event: dict[str, Any], line: str) -> None:
        print(json.dumps(event) if options.json else line, file=sys.stderr, flush=True)

    def fail(error: object, code: int) -> int:
        report({"event": "error", "text": str(error), "exit_code": code}, f"coordinator: {error}")
        return code

    try:
        return _run(options, lambda text: None if options.quiet else report({"event": "note", "text": text}, text))
    except IngestError as error:
        return fail(error, error.exit_code)
    except OSError as error:
        return fail(
            f"{error.filename or options.data}: {error.strerror}; name a path that can be written", ExitCode.FAILED
        )
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again: finished walks are kept", ExitCode.INTERRUPTED)


def _run(options: argparse.Namespace, log: Callable[[str], None]) -> int:
    """Run the backtest and print its summary."""
    out = options.out or options.data / FOLDER / f"{options.model}.parquet"
    check_suffix(out)
    for option, value, known in (("model", options.model, MODELS), ("every", options.every or "month", EVERY)):
        if value not in known:
            raise UsageError(f"--{option} {value!r} is unknown; choose {', '.join(known)}")
    if options.train_config is not None and options.model != "network":
        raise UsageError("--train-config belongs to --model network; leave it out")
    codes = parse_codes(options.respondents)
    if codes:
        check_respondents(codes)
    request = Request(
        options.data,
        month_number(options.first, "from"),
        month_number(options.last, "to"),
        codes,
        options.model,
        options.every or MODELS[options.model],
        Publication.parse(options.publication),
        options.train_config,
        out,
    )
    done = backtest(request, log)
    if options.json:
        document = {
            "table": str(out),
            "rows": done.rows,
            "walks": [str(walk) for walk in done.walks],
            "kept": done.kept,
        }
        print(json.dumps({**document, **done.verdict.to_json()}))
    else:
        print(
            f"{done.rows:,} rows in {out}: {len(done.walks)} walk{'s'[: len(done.walks) != 1]}, {done.kept} from an earlier run"
        )
        print("\n".join(describe(done.verdict, out)))
    return ExitCode.FAILED if done.verdict.peeks else ExitCode.DONE
