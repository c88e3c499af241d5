"""`--help`: typer's own with a working example below it; on a narrow terminal each option's words stand under its name."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

NARROW = 72  # columns: with less, typer's table leaves its last column a word a line


class Command(TyperCommand):
    """A command whose `epilog` is an example."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, to stdout, its example last."""
        if not shown_narrow(self, ctx):
            example, self.epilog = self.epilog, None
            super().format_help(ctx, formatter)
            self.epilog = example
        if self.epilog:
            print(f"Example:\n\n{filled(self.epilog, Console().width)}\n")


class Group(TyperGroup):
    """A group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, to stdout."""
        if not shown_narrow(self, ctx):
            super().format_help(ctx, formatter)


def shown_narrow(command: TyperCommand | TyperGroup, ctx: Any) -> bool:
    """Print the help in one column where the terminal has no room for two; False where it has."""
    columns = Console().width
    if columns >= NARROW:
        return False
    lines = [*textwrap.wrap(command.get_usage(ctx), columns), ""]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [*textwrap.wrap(paragraph, columns), ""]
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            name, words = (Text.from_markup(text).plain for text in record)
            lines += [name, filled(words, columns)]
    for name, one in getattr(command, "commands", {}).items():
        lines += [name, filled(one.help or "", columns)]
    print("\n".join([*lines, ""]))
    return True


def filled(text: str, columns: int) -> str:
    """Wrapped and indented. Words are never cut: what is copied has to work."""
    return textwrap.fill(
        text,
        columns,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
