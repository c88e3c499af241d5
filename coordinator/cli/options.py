"""Options and helpers shared by all commands."""

import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli.help import Command as HelpedCommand
from coordinator.cli.settings import BY_NAME, resolve
from coordinator.stages.stage import STAGES

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and JSON lines on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only errors and the result.")]
Command = Callable[..., None]


class PageCommand(HelpedCommand):
    """A command with `--http`, whose value may be left out. Such a command has no positional arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--http` its usual value where another option or nothing follows it."""
        from coordinator.watch.access import DEFAULT

        given = list(args)
        for i in reversed([i for i, word in enumerate(given) if word == "--http"]):
            if i + 1 == len(given) or given[i + 1].startswith("-"):
                given.insert(i + 1, DEFAULT)
        return super().parse_args(ctx, given)


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings; its argument `settings` is every setting's value."""

    def load(given: Mapping[str, Any]) -> dict[str, Any]:
        flags = {name: value for name in names if (value := given[_identifier(name)]) not in (None, [], ())}
        resolved = resolve(flags, os.environ, Path.cwd())
        return {name: entry.value for name, entry in resolved.items()}

    return _with_options([(_identifier(name), *_option(name)) for name in names], "settings", load)


def with_stages(command: Command) -> Command:
    """Give a command a flag for each stage; its argument `stages` is the set of those that were given."""
    flags = [(stage.name, bool, typer.Option(f"--{stage.name}", help=stage.help), False) for stage in STAGES]
    return _with_options(flags, "stages", lambda given: {name for name, value in given.items() if value})(command)


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _option(name: str) -> tuple[Any, Any, Any]:
    """Type, option and default of a setting."""
    setting = BY_NAME[name]
    # The help text states what an empty default or a default of 0 means.
    default = "" if setting.default in ("", 0) else f" [default: {setting.default}]"
    option = typer.Option(
        f"--{name}",
        help=setting.help + default,
        metavar=setting.metavar,
        min=setting.least,
        show_default=False,
    )
    return setting.kind | None, option, None


def _with_options(
    options: Sequence[tuple[str, Any, Any, Any]], argument: str, collect: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Add options (identifier, type, option, default) to a command; `collect` converts their values to its `argument`."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        kept = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for name, parameter in own.parameters.items()
            if name != argument
        ]
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
            for name, kind, option, default in options
        ]

        @functools.wraps(command)
        def extended(**given: Any) -> None:
            taken = {name: given.pop(name) for name, *_ in options}
            command(**given, **{argument: collect(taken)})

        # The signature has all of the types; Typer would evaluate the annotations of the command again.
        del extended.__wrapped__
        extended.__annotations__ = {}
        # Settings come last in the help, since most of them have a good default.
        order = [*kept, *added] if argument == "settings" else [*added, *kept]
        extended.__signature__ = own.replace(parameters=order)  # type: ignore[attr-defined]
        return extended

    return decorate


def folder_of(settings: Mapping[str, Any]) -> Path:
    """Return the data folder.

    Raises:
        UsageError: this version cannot read the folder.
    """
    from ingest.data_folder import check_folder  # here: completion has no time to load pyarrow

    folder: Path = settings["data"]
    check_folder(folder)
    return folder


def existing_folder(settings: Mapping[str, Any]) -> Path:
    """Return the data folder of a command that needs one.

    Raises:
        UsageError: there is none, or this version cannot read it.
    """
    from ingest.data_folder import check_there

    folder = folder_of(settings)
    check_there(folder)
    return folder


def width_of_stdout() -> int | None:
    """Return the columns of the terminal that stdout is; None: it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
