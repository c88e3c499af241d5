"""The hourly routes of EIA's API, `electricity/rto/<id>`: the columns that tell rows apart, and the variable that a row belongs to.

A row is of one respondent and one series of it. The variables are EIA's v1 names: `D` for a type of region-data, `NG.<fuel>`,
`ID.<neighbour>` (the flow from the respondent to the neighbour, exports positive) and `D.<sub-area>`.
"""

from dataclasses import dataclass

from ingest.catalog import SUB_AREAS


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


EIA_ROUTES: dict[str, Route] = {
    route.id: route
    for route in (
        # Forecasts are made for the whole next local day.
        Route("region-data", "respondent", "type", "", series=4, ahead_hours=48),
        Route("fuel-type-data", "respondent", "fueltype", "NG.", series=7),
        Route("interchange-data", "fromba", "toba", "ID.", series=4),
        Route("region-sub-ba-data", "parent", "subba", "D.", series=11, respondents=frozenset(SUB_AREAS)),
    )
}


def variable_of(route: str, code: str) -> str:
    """Return the variable of an EIA code on a route: `NG` is a type of region-data, and `NG.NG` natural gas."""
    return EIA_ROUTES[route].prefix + code
