"""Format `--help` for any terminal width. Plain text: Typer's own formatter takes twice as long to load as the command line.

Words are never cut, so that what is copied works. On a narrow terminal an option's help is printed below its name.
"""

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

NARROW = 72  # columns: with less, two columns of text leave the second one a word a line
WIDE = 100  # columns: longer lines are hard to read
Rows = Iterable[tuple[str, str]]


class Command(TyperCommand):
    """A command whose `epilog` is an example."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the example last."""
        formatter.write(help_text(self, ctx))


class Group(TyperGroup):
    """A group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the group's help to `formatter`."""
        formatter.write(help_text(self, ctx))


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
