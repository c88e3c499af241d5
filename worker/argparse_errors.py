"""The argument parser of a worker's programs: what is wrong with a command line is told in one line, with the next command."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """`epilog` is an example, printed as it stands."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line that says what is wrong with the command line."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` shows what it takes\n")
