"""Argument parser of a worker's programs: prints one line for an error, with the next command."""

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from coordinator.wire.exit_codes import ExitCode


class _PrintVersion(argparse.Action):
    """Print the version and exit. It is looked up only then, because that takes as long as a small import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(parser.prog, version("ring-attention-energy"))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Parser whose help ends with an example, printed without line wrapping.

    Args:
        prog: Name of the program.
        description: What the program does.
        example: A command line.
        options: By flag, the arguments of `add_argument`.
    """

    def __init__(self, prog: str, description: str, example: str, options: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
        for flag, arguments in options.items():
            self.add_argument(flag, **arguments)

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit with code 2."""
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}; run `{self.prog} --help` for the options\n")
