"""How every command speaks: results go to stdout, all else to stderr; an error is one line and an exit code.

With `--json` stdout holds one JSON document and stderr JSON lines, whose `event` is "progress", "note" or "error".
"""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from coordinator.wire.auth import CurveError
from ingest.errors import AuthenticationError, IngestError, StorageError, UsageError
from rl.errors import ControlError

EXIT_FAILED, EXIT_USAGE, EXIT_AUTHENTICATION, EXIT_INCOMPLETE = 1, 2, 4, 75
OUR_ERRORS = (IngestError, CurveError, ControlError)
# What typer raises for any wrong command line; it shows this child alone.
WRONG_WORDS: Any = typer.BadParameter.__mro__[1]


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """The exit code of a command line (default: the process's own); errors have been told by then."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in words
    try:
        return int(app(words, prog_name="coordinator", standalone_mode=False) or 0)
    except WRONG_WORDS as error:
        if message := error.format_message():  # none: no command was named, and the help was shown
            context = error.ctx.command_path if error.ctx is not None else " ".join(["coordinator", *words[:1]])
            said = f"{message[0].lower()}{message[1:].rstrip('.?')}"
            tell(f"{said}. `{context} --help` shows what it takes.", EXIT_USAGE, as_json=as_json)
        return EXIT_USAGE
    except OUR_ERRORS as error:
        return tell(str(error), exit_code_of(error), as_json=as_json)
    except OSError as error:
        if error.filename is None:  # not the disk
            raise
        cause = f"{error.filename}: {error.strerror}"
        return tell(
            f"{cause}. Mend it, or name another path, then run the same command again.", EXIT_FAILED, as_json=as_json
        )


def tell(message: str, code: int, *, as_json: bool) -> int:
    """One line on stderr, in words or as JSON; gives `code` back."""
    line = {"event": "error", "text": message, "exit_code": code}
    print(json.dumps(line) if as_json else f"coordinator: {message}", file=sys.stderr, flush=True)
    return code


def exit_code_of(error: Exception) -> int:
    """Exit code of one of our errors."""
    if isinstance(error, AuthenticationError):
        return EXIT_AUTHENTICATION
    if isinstance(error, UsageError | CurveError):
        return EXIT_USAGE
    return EXIT_INCOMPLETE if isinstance(error, StorageError) else EXIT_FAILED
