"""Entry point of `coordinator` and `python -m coordinator`. Installs the Ctrl-C handler before it imports slow modules."""

import json
import signal
import sys
from types import FrameType

from coordinator.wire.exit_codes import ExitCode
from ringattn.macos import refused_python

MESSAGE = "Interrupted. Completed work is saved; run the same command to resume."


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    """Print one line at once, then unwind. The next Ctrl-C ends the process without waiting for that.

    Raises:
        KeyboardInterrupt: always.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = json.dumps({"event": "note", "text": MESSAGE}) if "--json" in sys.argv else f"coordinator: {MESSAGE}"
    print(line, file=sys.stderr, flush=True)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and end the process with its exit code."""
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        from ingest.console import ending, protect

        protect()
        from coordinator.cli.app import app
        from coordinator.cli.errors import print_error, run

        if reason := refused_python():
            code = print_error(reason, ExitCode.USAGE, as_json="--json" in sys.argv)
        else:
            code = run(app)
            if not {"start", "follow"} & {*sys.argv[1:2]}:  # the result of those is on the disk
                code = ending(code)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
