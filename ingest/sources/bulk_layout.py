"""The columns of EIA's six-month files: which name means which variable, over the years. No I/O."""

import re
from dataclasses import dataclass

from ingest.errors import SourceError
from ingest.models import MAX_VARIABLES
from ingest.routes import variable_of

# Names of columns and of fuels in lower case: their case does not count.
_RESPONDENT, _UTC = "balancing authority", "utc time at end of hour"
_TYPES = {
    "demand forecast (mw)": "DF",
    "demand (mw)": "D",
    "net generation (mw)": "NG",
    "total interchange (mw)": "TI",
}
_FUELS = {
    "coal": "COL",
    "natural gas": "NG",
    "nuclear": "NUC",
    "all petroleum products": "OIL",
    "hydropower and pumped storage": "WAT",
    "hydropower excluding pumped storage": "WAT",
    "hydropower": "WAT",
    "pumped storage": "PS",
    "solar": "SUN",
    "solar without integrated battery storage": "SUN",
    "solar with integrated battery storage": "SNB",
    "wind": "WND",
    "wind without integrated battery storage": "WND",
    "wind with integrated battery storage": "WNB",
    "battery storage": "BAT",
    "other energy storage": "OES",
    "unknown energy storage": "UES",
    "geothermal": "GEO",
    "other fuel sources": "OTH",
    "unknown fuel sources": "UNK",
}
_FUEL_COLUMN = re.compile(r"net generation \(mw\) from (.+?)(?: \((?:imputed|adjusted)\))?$")
_KINDS = ("imputed", "adjusted")  # what EIA made of a reported value; its columns end with "(Imputed)", "(Adjusted)"
_TRUNCATED = "solar witho integrated battery storage"  # EIA's typing error in a column's name
ADJUSTED = "ADJUSTED"


@dataclass(frozen=True)
class _Rows:
    """The layout of a file with one value a line: the names of its columns, in lower case, and the prefix of its variables."""

    code: tuple[str, ...]  # that tells the series of a respondent apart
    value: str
    prefix: str


LONG = {
    "INTERCHANGE": _Rows(("directly interconnected balancing authority",), "interchange (mw)", "ID."),
    "SUBREGION": _Rows(("sub-region", "subregion", "sub region"), "demand (mw)", "D."),
}


def variables_of(header: list[str]) -> dict[str, str]:
    """Return column → variable, for the plain columns of a file's header. Case and blanks of names do not count.

    An unknown fuel keeps its name (`Net Generation (MW) from Green Tea` → `NG.GREEN_TEA`), so that nothing that a new
    vintage adds is lost. Two columns can be of one variable, e.g. "Solar" and "Solar without Integrated Battery Storage".
    """
    found: dict[str, str] = {}
    for column in header:
        name = _plain(column)
        match = _FUEL_COLUMN.fullmatch(name)
        if name in _TYPES:
            found[column] = _TYPES[name]
        elif match and not name.endswith(("(imputed)", "(adjusted)")):
            code = _FUELS.get(match[1]) or re.sub(r"\W+", "_", match[1]).upper().strip("_")
            found[column] = variable_of("fuel-type-data", code)
    return found


def derived_of(header: list[str]) -> dict[str, str]:
    """Return column → variable, for the imputed and adjusted columns of a file's header, e.g. `imputed.D`."""
    found: dict[str, str] = {}
    plain = {_plain(column) for column in header}
    for kind in _KINDS:
        ending = f" ({kind})"
        for column in header:
            name = _plain(column).removesuffix(ending)
            if name == _plain(column):
                continue
            if name.endswith(_TRUNCATED):  # of the two kinds of solar, the one that is not spelt out
                other = f"{name.removesuffix(_TRUNCATED)}solar without integrated battery storage{ending}"
                name = name.replace(" witho ", " with " if other in plain else " without ")
            for variable in variables_of([name]).values():
                found[column] = f"{kind}.{variable}"
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


def layout_of(route: str, header: list[str]) -> tuple[str, str, str, dict[str, str]]:
    """Return the columns of a file: respondent, time, code ("" where a line has all variables), and column → variable.

    Raises:
        SourceError: kind "csv" (a column is missing) or "foreign" (too many variables).
    """
    named = {_plain(name): name for name in reversed(header)}
    long = LONG.get(route)
    if long:
        code = next((name for name in long.code if name in named), long.code[0])
        needed = {_RESPONDENT, _UTC, code, long.value}
    else:
        code, needed = "", {_RESPONDENT, _UTC, *_TYPES}
    if missing := needed - named.keys():
        raise SourceError(f"the file has no column {', '.join(sorted(missing))}", "csv")
    if long:
        return named[_RESPONDENT], named[_UTC], named[code], {named[long.value]: ""}
    variables = derived_of(header) if route == ADJUSTED else variables_of(header)
    if not variables:
        raise SourceError("the file has no imputed and no adjusted column", "csv")
    if len(variables) > MAX_VARIABLES:
        raise SourceError(f"the file has more than {MAX_VARIABLES} variables", "foreign")
    return named[_RESPONDENT], named[_UTC], "", variables
