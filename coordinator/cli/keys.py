"""`coordinator keys …` and `coordinator config show`: commands that only read or write small files."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.cli.help import Command, Group
from coordinator.cli.options import AsJson, Keys, settings_of, width_of_stdout
from coordinator.cli.settings import SETTINGS
from coordinator.server import key_store

UNWRAPPED = 1_000  # columns, for a table that is read by no terminal: its rows stay lines

keys_app = typer.Typer(cls=Group, no_args_is_help=True, help="CURVE keys for workers on other hosts.")
config_app = typer.Typer(cls=Group, no_args_is_help=True, help="Settings and where each came from.")


@keys_app.command("init", cls=Command, epilog="coordinator keys init")
def keys_init(keys: Keys = None, as_json: AsJson = False) -> None:
    """Make the coordinator's own key pair, once."""
    path = key_store.make_coordinator_key(settings_of(keys=keys)["keys"].value)
    print(json.dumps({"key": str(path)}) if as_json else path)


@keys_app.command("add", cls=Command, epilog="coordinator keys add m2-1")
def keys_add(name: str, keys: Keys = None, as_json: AsJson = False) -> None:
    """Make a key file for the worker NAME and put it on the allow-list. Copy the file to its host: `worker --key FILE`."""
    path = key_store.add_worker(settings_of(keys=keys)["keys"].value, name)
    print(json.dumps({"name": name, "key": str(path)}) if as_json else path)


@keys_app.command("revoke", cls=Command, epilog="coordinator keys revoke m2-1")
def keys_revoke(name: str, keys: Keys = None, as_json: AsJson = False) -> None:
    """Take the worker NAME off the allow-list and delete its key file. A running coordinator cuts it off within a second."""
    key_store.revoke_worker(settings_of(keys=keys)["keys"].value, name)
    if as_json:
        print(json.dumps({"name": name, "revoked": True}))


@keys_app.command("list", cls=Command, epilog="coordinator keys list")
def keys_list(keys: Keys = None, as_json: AsJson = False) -> None:
    """The workers that may connect, with their public keys."""
    allowed = key_store.read_allowed(settings_of(keys=keys)["keys"].value)
    if as_json:
        print(json.dumps(allowed))
        return
    for name, public in sorted(allowed.items()):
        print(f"{name}\t{public}")


@config_app.command("show", cls=Command, epilog="coordinator config show")
def config_show(as_json: AsJson = False) -> None:
    """Every setting, its value, and where it came from (flag, environment, cluster.toml, default)."""
    settings = settings_of()
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
        table.add_row(*(escape(cell) for cell in (setting.name, shown, entry.origin, setting.variable)))
    Console(width=width_of_stdout() or UNWRAPPED).print(table)
