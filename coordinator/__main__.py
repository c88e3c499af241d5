"""`coordinator`, also as `python -m coordinator`: Ctrl-C is answered from the first moment on, before what is slow to load is loaded."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

INTERRUPTED = 130
ANSWER = "interrupted; what was proved stays, and the same command starts again or goes on"


def _answer(signum: int, frame: FrameType | None) -> None:
    """One line at once; then what is under way unwinds. The next Ctrl-C does not wait for it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = json.dumps({"event": "note", "text": ANSWER}) if "--json" in sys.argv else f"coordinator: {ANSWER}"
    print(line, file=sys.stderr, flush=True)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and end the process with its exit code."""
    signal.signal(signal.SIGINT, _answer)
    try:
        from coordinator.cli.app import app
        from coordinator.cli.errors import run

        code = run(app)
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
