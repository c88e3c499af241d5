"""Report errors: one line on stderr and an exit code. Results go to stdout, everything else to stderr.

With `--json` stdout holds one JSON document and stderr JSON lines, whose `event` is "progress", "note", "error", or "page" with the live
page's `url`.
"""

import json
import sys
from typing import Any

import typer

from coordinator.wire.exit_codes import ExitCode
from ingest.console import printable_lines

# The base class of what Typer raises for a wrong command line; Typer exports only this subclass of it.
COMMAND_LINE_ERROR: Any = typer.BadParameter.__mro__[1]


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; every error has been printed by then.

    Args:
        app: the commands.
        arguments: the command line without the program's name; by default the process's own.

    Raises:
        OSError: an error of the system that names no file.
        Exception: an error without an `exit_code`, which is a defect of the program.
    """
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in words
    try:
        return int(app(words, prog_name="coordinator", standalone_mode=False) or 0)
    except COMMAND_LINE_ERROR as error:
        if message := error.format_message():  # empty: no command was named, and the help was printed
            context = error.ctx.command_path if error.ctx is not None else " ".join(["coordinator", *words[:1]])
            text = f"{message[0].lower()}{message[1:].rstrip('.?')}"
            print_error(f"{text}. `{context} --help` lists the options.", ExitCode.USAGE, as_json=as_json)
        return ExitCode.USAGE
    except OSError as error:
        if error.filename is None:  # not of the disk
            raise
        message = f"{error.filename}: {error.strerror}. Fix this or name another path, then run the same command again."
        return print_error(message, ExitCode.FAILED, as_json=as_json)
    except Exception as error:
        # The attribute is read instead of importing the error classes, so that an extraction loads nothing of `rl`.
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        return print_error(str(error), code, as_json=as_json)


def ending(stage: str, status: str, message: str, code: int) -> str:
    """Return the line about a stage that did not end with all of its work done.

    Args:
        stage: name of the stage, e.g. "extract".
        status: how it ended, e.g. "incomplete".
        message: why.
        code: its exit code; where that says that the user stopped it, neither status nor message tells more.
    """
    if code == ExitCode.INTERRUPTED:
        return f"{stage} was stopped before it was complete; start again to resume"
    return f"{stage} is not complete ({status}): {message}"


def print_error(message: str, code: int, *, as_json: bool) -> int:
    """Print one line on stderr, as text or as JSON, and return `code`."""
    line = {"event": "error", "text": message, "exit_code": code}
    print(json.dumps(line) if as_json else f"coordinator: {printable_lines(message)}", file=sys.stderr, flush=True)
    return code
