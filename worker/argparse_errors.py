"""Argument parser of a worker's programs: prints one line for an error, with the next command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from coordinator.wire.exit_codes import ExitCode


class Parser(argparse.ArgumentParser):
    """Parser whose help ends with an example, printed without line wrapping."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit with code 2."""
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}; run `{self.prog} --help` for the options\n")
