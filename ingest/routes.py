"""The routes of EIA's API, `electricity/rto/<id>`: the columns that tell rows apart, and the variable that a row belongs to.

A row is of one respondent and one series of it. The variables are EIA's v1 names: `D` for a type of region-data, `NG.<fuel>`,
`ID.<neighbour>` (the flow from the respondent to the neighbour, exports positive) and `D.<sub-area>`. Each hourly route has a daily
twin, `daily-<id>`: the same series in MWh a local day. It gives each day once for each of five time zones, with different values.
"""

from dataclasses import dataclass, replace

from ingest.catalog import FUEL_COUNTS, ONLY_GENERATE, SUB_AREAS


@dataclass(frozen=True)
class Route:
    """One route. Codes of `code` are unique for a respondent."""

    id: str
    respondent: str  # key and facet of the respondent of a row
    code: str  # key and facet that tells the series of a respondent apart
    prefix: str  # of a variable, before the code
    series: int  # of a respondent, on average: for the expected number of requests
    ahead_hours: int = 0  # after the present hour that can have values
    respondents: frozenset[str] | None = None  # that EIA publishes it for; None = all

    def series_of(self, respondent: str) -> int:
        """Return how many series a respondent has, as far as the catalogue knows; else the average."""
        if self.prefix == "NG.":
            return FUEL_COUNTS.get(respondent, self.series)
        if self.code == "type" and respondent in ONLY_GENERATE:
            return 2  # NG and TI
        if self.code == "subba":
            return len(SUB_AREAS.get(respondent, ())) or self.series
        return self.series


HOURLY_ROUTES: dict[str, Route] = {
    route.id: route
    for route in (
        # Forecasts are made for the whole next local day.
        Route("region-data", "respondent", "type", "", series=4, ahead_hours=48),
        Route("fuel-type-data", "respondent", "fueltype", "NG.", series=7),
        Route("interchange-data", "fromba", "toba", "ID.", series=4),
        Route("region-sub-ba-data", "parent", "subba", "D.", series=11, respondents=frozenset(SUB_AREAS)),
    )
}
DAILY_ROUTES: dict[str, Route] = {
    f"daily-{name}": replace(route, id=f"daily-{name}", ahead_hours=0) for name, route in HOURLY_ROUTES.items()
}
EIA_ROUTES = {**HOURLY_ROUTES, **DAILY_ROUTES}

# IANA zone → EIA's name of it, a value of the facet `timezone` of the daily routes.
EIA_ZONES = {
    "America/New_York": "Eastern",
    "America/Chicago": "Central",
    "America/Denver": "Mountain",
    "America/Phoenix": "Arizona",
    "America/Los_Angeles": "Pacific",
}


def variable_of(route: str, code: str) -> str:
    """Return the variable of an EIA code on a route: `NG` is a type of region-data, and `NG.NG` natural gas."""
    return EIA_ROUTES[route].prefix + code
