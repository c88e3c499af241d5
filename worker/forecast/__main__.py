"""Entry point of `python -m worker.forecast`."""

import sys

from worker.forecast.cli import main

if __name__ == "__main__":
    sys.exit(main())
