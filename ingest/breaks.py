"""Breaks of EIA-930: hours whose values mean something else than later ones of the same name, and known shifts of time stamps.

Nothing is corrected. A series names the breaks that concern it in `series.json`, and docs/reference/data.md lists all. Sources: EIA's
column names (PUDL's column map `balance.csv`, pudl #5335) for what generation counts; Open Grid Emissions, `manual_930_adjust` of
`src/oge/eia930.py` (Singularity Energy), for time stamps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ingest.columns import hour_number

REPORTED_BY_EIA = ("eia", "bulk")  # sources


@dataclass(frozen=True)
class Break:
    """What values mean before an hour. `until` is the first hour for which it no longer holds; "" where none is known."""

    respondents: tuple[str, ...]  # () = all
    variables: tuple[str, ...]  # "NG.*" = every fuel
    until: str  # UTC, hour-ending
    meaning: str

    def concerns(self, respondent: str, variable: str) -> bool:
        """Return whether it is about a variable of a respondent."""
        fuel = variable.startswith("NG.") and "NG.*" in self.variables
        return (not self.respondents or respondent in self.respondents) and (fuel or variable in self.variables)


STAMPED = ("D", "NG", "NG.*")  # what Open Grid Emissions shifts as one: demand and generation
BREAKS = (
    Break((), ("NG.WAT",), "2024-07-01T00", "includes pumped storage, which is NG.PS afterwards"),
    Break((), ("NG.SUN",), "2024-07-01T00", "includes solar with integrated batteries, which is NG.SNB afterwards"),
    Break((), ("NG.WND",), "2024-07-01T00", "includes wind with integrated batteries, which is NG.WNB afterwards"),
    Break(
        (), ("NG.OTH",), "2024-07-01T00", "includes batteries and geothermal, which are NG.BAT and NG.GEO afterwards"
    ),
    Break(
        ("CISO", "CAL"),
        STAMPED,
        "2022-06-16T07",
        "CISO's hours are stamped with their beginning, an hour early (but 2022-06-14T07 to 2022-06-15T06)",
    ),
    Break(("PJM",), STAMPED, "", "hours are stamped with their beginning, an hour early (in May 2023 still so)"),
    Break(("PJM",), ("TI",), "", "hours are stamped 3 hours late in summer and 4 in winter (in May 2023 still so)"),
    Break(("SC",), STAMPED, "2020-12-31T00", "hours are stamped 4 hours late in summer and 5 in winter"),
    Break(("TEPC",), STAMPED, "2021-11-01T00", "hours are stamped with their beginning, an hour early"),
    Break(("TEPC",), ("TI",), "2021-10-25T00", "hours are stamped 7 hours late"),
    Break(("AZPS",), ("TI",), "2020-06-01T07", "the flow to SRP changes its sign, gradually from November 2019 on"),
)


def breaks_of(respondent: str, variables: Iterable[str], first: int) -> list[dict[str, object]]:
    """Return the breaks that a series from the hour `first` (a number) on has, each with its variables: plain data."""
    names = tuple(variables)
    return [
        {"variables": own, "until": one.until, "meaning": one.meaning}
        for one in BREAKS
        if (not one.until or first < hour_number(one.until))
        and (own := [name for name in names if one.concerns(respondent, name)])
    ]
