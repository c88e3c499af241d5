"""`coordinator keys …` and `coordinator config show`: commands that only read or write small files."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli.help import Command, Group
from coordinator.cli.options import AsJson, width_of_stdout, with_settings
from coordinator.cli.settings import SETTINGS, resolve
from ingest.console import printable, unescaped

UNWRAPPED = 1_000  # columns, for a table that no terminal reads: each row stays a line

keys_app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode=None, help="CURVE keys of workers on other hosts."
)
config_app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help="Settings and their origins.")

Settings = Mapping[str, Any]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker.")]


def _print(as_json: bool, document: Any, text: object) -> None:
    print(json.dumps(document) if as_json else text)


@keys_app.command("init", cls=Command, epilog="coordinator keys init")
@with_settings("keys")
def keys_init(settings: Settings, as_json: AsJson = False) -> None:
    """Create the coordinator's own key pair, once."""
    from coordinator.server import key_store

    path = key_store.make_coordinator_key(settings["keys"])
    _print(as_json, {"key": str(path)}, path)


@keys_app.command("add", cls=Command, epilog="coordinator keys add m2-1")
@with_settings("keys")
def keys_add(settings: Settings, name: Name, as_json: AsJson = False) -> None:
    """Create a key file for the worker NAME and allow the key. Copy the file to the worker's host: `worker --key FILE`."""
    from coordinator.server import key_store

    path = key_store.add_worker(settings["keys"], name)
    _print(as_json, {"name": name, "key": str(path)}, path)


@keys_app.command("revoke", cls=Command, epilog="coordinator keys revoke m2-1")
@with_settings("keys")
def keys_revoke(settings: Settings, name: Name, as_json: AsJson = False) -> None:
    """Revoke the key of the worker NAME and delete its key file. A running coordinator disconnects it within a second."""
    from coordinator.server import key_store

    key_store.revoke_worker(settings["keys"], name)
    if as_json:
        print(json.dumps({"name": name, "revoked": True}))


@keys_app.command("list", cls=Command, epilog="coordinator keys list")
@with_settings("keys")
def keys_list(settings: Settings, as_json: AsJson = False) -> None:
    """List the workers that may connect, with their public keys."""
    from coordinator.server import key_store

    allowed = key_store.read_allowed(settings["keys"])
    if as_json or allowed:
        _print(as_json, allowed, "\n".join(f"{name}\t{public}" for name, public in sorted(allowed.items())))


@config_app.command("show", cls=Command, epilog="coordinator config show")
def config_show(as_json: AsJson = False) -> None:
    """Print every setting, its value and its origin (flag, environment, cluster.toml, default)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    settings = resolve({}, os.environ, Path.cwd())
    if as_json:
        print(
            json.dumps({name: {"value": str(entry.value), "origin": entry.origin} for name, entry in settings.items()})
        )
        return
    table = Table("setting", "value", "from", "variable", box=None, pad_edge=False)
    for setting in SETTINGS:
        entry = settings[setting.name]
        value = ",".join(map(str, entry.value)) if isinstance(entry.value, tuple) else str(entry.value)
        shown = str(setting.default) if entry.value is None else value
        table.add_row(*(escape(printable(cell)) for cell in (setting.name, shown, entry.origin, setting.variable)))
    Console(file=unescaped(sys.stdout), width=width_of_stdout() or UNWRAPPED).print(table)
