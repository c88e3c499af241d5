"""Entry point of `python -m worker.forecast`."""

import sys

if __name__ == "__main__":
    from ingest.console import ending, protect
    from ringattn.blas import loader as blas

    protect()

    blas.prepare(quiet=True)  # sets threads and BLAS, which must happen before numpy and mlx load
    from worker.forecast.cli import main

    sys.exit(ending(main()))
