"""Command line of a training run: signals, errors and exit codes of `worker/train.py`.

Exit codes: 0 the run ended and result.json is written; 1 the data cannot be used; 2 wrong settings; 75 interrupted (a peer is
gone, or SIGTERM): run it again to resume; 130 the same after Ctrl-C.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence

import ringattn
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.failures import LAUNCH_ERROR
from ingest.errors import IngestError, UsageError
from ringattn.blas import loader as blas
from worker.training.config import parse
from worker.training.loop import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank's training and return its exit code.

    Args:
        argv: the flags; None reads them from `sys.argv`.

    Raises:
        RuntimeError: if MLX fails for another reason than a lost peer.
    """
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
        print(
            "Stopping after this step, with a checkpoint. Press Ctrl-C again to stop now.", file=sys.stderr, flush=True
        )
        stop.set()

    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, interrupt)
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        os.environ.setdefault("RINGATTN_TIMEOUT", str(config.timeout))
        group = ringattn.init(config.timeout)
        if group.rank() == 0:
            print(f"{group.size()} rank(s); {blas.describe()}", file=sys.stderr, flush=True)
        finished = Trainer(config, group, stop).run()
    except ringattn.LaunchError as error:
        print(f"{LAUNCH_ERROR}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except (IngestError, ringattn.ArgumentError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.USAGE if isinstance(error, UsageError | ringattn.ArgumentError) else ExitCode.FAILED
    except RuntimeError as error:
        if not isinstance(error, ringattn.PeerError) and "[ring]" not in str(error):  # mlx's own collectives
            raise
        print(f"{type(error).__name__}: {error}. Run it again to resume from the newest checkpoint.", file=sys.stderr)
        ringattn.abort(ExitCode.INCOMPLETE)
    if finished:
        return 0
    return ExitCode.INTERRUPTED if signal.getsignal(signal.SIGINT) == signal.SIG_DFL else ExitCode.INCOMPLETE


def run_rank(argv: Sequence[str] | None = None) -> int:
    """Run `main`; a rank that fails ends here, without MLX's clean-up, which would wait for the other ranks.

    Args:
        argv: as for `main`.
    """
    code = main(argv)
    if code:
        ringattn.abort(code)
    return code
