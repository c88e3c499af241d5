"""Format `--help` for any terminal width. Plain text: Typer's own formatter takes twice as long to load as the command line.

Words are never cut, so that what is copied works. On a narrow terminal an option's help is printed below its name.
"""

import shutil
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ingest.errors import UsageError

NARROW = 72  # columns: with less, two columns of text leave the second one a word a line
WIDE = 100  # columns: longer lines are hard to read
Rows = Iterable[tuple[str, str]]


class Command(TyperCommand):
    """A command whose `epilog` is an example, and whose options refuse an empty value unless their help says what it means."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line.

        Raises:
            UsageError: an option has an empty value, as from an unset variable of a shell.
        """
        if not ctx.resilient_parsing and (name := _emptied(self.get_params(ctx), args)):
            raise UsageError(
                f"{name} has an empty value. Give it one, or leave {name} out; `{ctx.command_path} --help` describes it."
            )
        return list(super().parse_args(ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the example last."""
        formatter.write(help_text(self, ctx))


class Group(TyperGroup):
    """A group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the group's help to `formatter`."""
        formatter.write(help_text(self, ctx))


def _emptied(params: Iterable[Any], words: list[str]) -> str:
    """Return the first option with an empty value that its help gives no meaning to; "": there is none. An empty path would be the working folder."""
    given = [word[:-1] for word in words if word.startswith("--") and word.endswith("=")]
    given += [word for word, value in pairwise(words) if value == ""]
    for param in params:
        meant = "Empty:" in (getattr(param, "help", "") or "") and param.metavar != "PATH"
        if not meant and not getattr(param, "is_flag", False) and (found := [o for o in param.opts if o in given]):
            return str(found[0])
    return ""


def help_text(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    """Return usage, description, options, commands and example, wrapped to the terminal's width."""
    columns = min(shutil.get_terminal_size().columns, WIDE)
    records = [record for param in command.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]
    commands = [(name, one.help or "") for name, one in getattr(command, "commands", {}).items()]
    parts = [_wrap(command.get_usage(ctx).replace("\n", " "), columns)]
    parts += [_wrap(" ".join(paragraph.split()), columns) for paragraph in (command.help or "").split("\n\n")]
    parts += [
        f"{title}:\n{_table(rows, columns)}" for title, rows in (("Options", records), ("Commands", commands)) if rows
    ]
    if command.epilog:
        parts.append("Example:\n" + _wrap(command.epilog, columns, "  ", "    "))
    return "\n\n".join(parts) + "\n"


def _table(rows: Rows, columns: int) -> str:
    if columns < NARROW:
        return "\n".join(f"  {name}\n{_wrap(text, columns, '      ')}" for name, text in rows)
    width = max(len(name) for name, _ in rows) + 4
    return "\n".join(_wrap(text or " ", columns, f"  {name}".ljust(width), " " * width) for name, text in rows)


def _wrap(text: str, columns: int, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        text,
        columns - 1,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
