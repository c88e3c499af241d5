"""What the commands share: options as settings have them, the resolved settings, the folder, the width of the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from coordinator.cli.settings import SETTINGS, Resolved, resolve


def option(name: str, *extra: str) -> Any:
    """The option of a setting, with its words."""
    setting = next(s for s in SETTINGS if s.name == name)
    default = "" if setting.default in ("", 0) else f" [default: {setting.default}]"  # those say what they stand for
    return typer.Option(f"--{name}", *extra, help=escape(setting.help + default), show_default=False)


Data = Annotated[str | None, option("data")]
Keys = Annotated[str | None, option("keys")]
Bind = Annotated[str | None, option("bind")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, JSON lines on stderr")]
Quiet = Annotated[bool, typer.Option("--quiet", help="say nothing but errors and the result")]


def settings_of(**flags: Any) -> dict[str, Resolved]:
    """All settings, where `flags` are those of the command line (None: not given). UsageError for one that does not parse."""
    return resolve({name.replace("_", "-"): value for name, value in flags.items()}, os.environ, Path.cwd())


def folder_of(settings: dict[str, Resolved]) -> Path:
    """The data folder. UsageError where this version does not read it."""
    from ingest.data_folder import check_folder  # here, since completion has no time for pyarrow

    folder: Path = settings["data"].value
    check_folder(folder)
    return folder


def width_of_stdout() -> int | None:
    """Columns of the terminal that reads stdout; None: no terminal does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
