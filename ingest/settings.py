"""Load typed settings from layers (flags, environment variables, a TOML file) over their defaults.

The settings of the coordinator, of a training and of a control training are loaded by this module.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ingest.errors import UsageError

TYPES = {int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class Setting:
    """One setting. `parse` turns a value of any layer into the setting's type, and raises ValueError if it cannot."""

    name: str
    default: Any
    parse: Callable[[Any], Any]


@dataclass(frozen=True)
class Layer:
    """Values of one origin. `fix` is the next step that an error names; `{name}` in it is replaced by the setting's name."""

    origin: str
    values: Mapping[str, Any]
    fix: str


@dataclass(frozen=True)
class ResolvedSetting:
    """A value and its origin: that of a layer, or "default"."""

    value: Any
    origin: str


def resolve(settings: Iterable[Setting], layers: Sequence[Layer]) -> dict[str, ResolvedSetting]:
    """Take each setting from the first layer that has it, else its default.

    Raises:
        UsageError: a value does not parse; the message names its origin and the fix.
    """
    resolved = {}
    for setting in settings:
        layer = next((layer for layer in layers if setting.name in layer.values), None)
        if layer is None:
            resolved[setting.name] = ResolvedSetting(setting.parse(setting.default), "default")
            continue
        raw = layer.values[setting.name]
        try:
            resolved[setting.name] = ResolvedSetting(setting.parse(raw), layer.origin)
        except (ValueError, TypeError) as error:
            fix = layer.fix.format(name=setting.name)
            raise UsageError(f"{setting.name} = {raw!r} (from {layer.origin}): {error}. {fix}") from error
    return resolved


def read_toml(path: Path, name: str, fix: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: the file.
        name: how messages call the file: an option, or nothing.
        fix: the next step that a message names.

    Raises:
        UsageError: the file cannot be read, or is not TOML.
    """
    import tomllib  # here and below: a command line without files loads in half the time

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{name} {path}: {error.strerror}. {fix}".lstrip()) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{name} {path}: not TOML: {error}. {fix}".lstrip()) from error


def check_keys(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse a key that no setting has, with the nearest known one.

    Raises:
        UsageError: a key is unknown.
    """
    for key in sorted(set(given) - set(known)):
        import difflib

        near = difflib.get_close_matches(key, known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(
            f"{where}: unknown setting {key!r}{meant}. Correct or remove the line; known settings: {', '.join(known)}."
        )


def settings_of(kind: type, *, text: bool, where: str = "") -> tuple[Setting, ...]:
    """Return a setting for each field of a dataclass whose fields all have defaults.

    Args:
        kind: the dataclass.
        text: whether numbers may come as text, as flags do.
        where: the table's name in messages.
    """
    hints, defaults = get_type_hints(kind), kind()
    return tuple(
        Setting(name, getattr(defaults, name), parser_of(hints[name], text=text, where=f"{where}: [{name}]"))
        for name in (field.name for field in dataclasses.fields(kind))
    )


def parser_of(kind: Any, *, text: bool, where: str = "") -> Callable[[Any], Any]:
    """Return the parser of a type: a path, upper-case codes, a choice, a number, text, or a dataclass from a table."""
    if kind is Path:
        return lambda value: Path(str(value)).expanduser()
    if kind == tuple[str, ...]:
        return parse_codes
    if get_origin(kind) is Literal:
        return choice(*get_args(kind))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return lambda value: value if isinstance(value, kind) else from_table(kind, value, where)

    def parse(value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if type(value) is kind or (kind is float and whole):
            return value
        if text and (isinstance(value, str) or (kind is str and whole)):
            with suppress(ValueError):
                return kind(value)
        raise ValueError(f"expected {TYPES[kind]}")

    return parse


def choice(*values: str) -> Callable[[Any], str]:
    """Return the parser of a setting that is one of `values`."""

    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"choose {' or '.join(values)}")
        return str(value)

    return parse


def at_least(least: int) -> Callable[[Any], int]:
    """Return the parser of an integer of `least` or more, as a number or as text."""
    integer = parser_of(int, text=True)

    def parse(value: Any) -> int:
        number = int(integer(value))
        if number < least:
            raise ValueError(f"must be {least} or more")
        return number

    return parse


def from_table(kind: type, table: Any, where: str) -> Any:
    """Return a dataclass from a TOML table; `where` names the table in messages.

    Raises:
        UsageError: this is no table, a key is unknown, or a value does not parse.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{where} = {table!r}: expected a table.")
    settings = settings_of(kind, text=False, where=where)
    check_keys(table, [setting.name for setting in settings], where)
    resolved = resolve(settings, [Layer(where, table, "Correct or remove the line.")])
    return kind(**{name: entry.value for name, entry in resolved.items()})


def parse_codes(value: Any) -> tuple[str, ...]:
    """Return upper-case codes in order, each once, from `PACW,ERCO` or a list of such texts."""
    return tuple(dict.fromkeys(name.upper() for name in parse_names(value)))


def parse_names(value: Any) -> tuple[str, ...]:
    """Return names in order, each once, from `region-data,fuel-type-data` or a list of such texts."""
    texts = value if isinstance(value, list | tuple) else [value]
    items = [item.strip() for text in texts for item in str(text).split(",")]
    return tuple(dict.fromkeys(item for item in items if item))
