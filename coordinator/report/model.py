"""The content of a report as plain data: one dataclass per section, or `Absent` if its stage has not run or can't be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.citation import Terms
from ingest.coverage import Coverage
from ingest.daily_check import DailyTotals
from ingest.manifest import Summary
from ingest.models import Gap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Absent:
    """The reason why a section is empty, and the command that fills it."""

    reason: str
    command: str
    damaged: bool = False  # a file of it cannot be read


@dataclass(frozen=True)
class Peak:
    """The highest hour of a local year."""

    year: int
    value: float  # MWh in the hour
    hour: str  # its end, UTC, YYYY-MM-DDTHH
    local: str  # the same in local time
    mean: float  # of the year's valid hours
    hours: int  # valid ones


@dataclass(frozen=True)
class PeakWeek:
    """The week around the highest hour on disk: [hour], MWh in the hour, NaN where there is none."""

    start: str  # local day, YYYY-MM-DD
    hour: Floats  # hours since its midnight, at the end of each hour
    demand: Floats
    forecast: Floats  # the operator's, day-ahead
    peak: float


@dataclass(frozen=True)
class OperatorError:
    """The error of an operator's day-ahead demand forecast over the hours that have both."""

    hours: int
    mae: float  # MWh
    bias: float  # MWh; above 0 the forecast is too high
    share: float  # MAE / mean demand
    by_hour: Floats  # [local hour of day] mean absolute error, % of their mean demand
    bias_by_hour: Floats  # likewise
    months: Floats  # months since 1970-01
    by_month: Floats  # [month] mean absolute error, % of the month's mean demand


@dataclass(frozen=True)
class Region:
    """Figures of one respondent for the report. Days and months are local; values are MWh in the hour, which is MW."""

    code: str
    zone: str
    first: str  # first and last hour with a valid demand, UTC
    last: str
    mean: float
    days: Floats  # days since 1970-01-01
    daily: Floats  # [day] mean demand; NaN where hours are missing
    lowest: Floats  # [day] demand of the lowest and the highest hour
    highest: Floats
    week: PeakWeek
    peaks: tuple[Peak, ...]  # by year
    duration: Mapping[int, Floats]  # year → demand at 0 to 100 % of its hours, the highest first
    mix: tuple[Floats, Mapping[str, Floats]] | None  # months since 1970-01; group of fuels → mean generation
    error: OperatorError | None
    exports: tuple[Floats, Floats] | None  # months since 1970-01; mean total interchange, exports positive
    flows: Mapping[str, float]  # neighbour → mean flow to it


@dataclass(frozen=True)
class Regions:
    """Respondents with demand, the largest first; the first `drawn` of them have charts."""

    regions: tuple[Region, ...]
    drawn: int


@dataclass(frozen=True)
class Revised:
    """Cells of a respondent-year whose value changed in a later fetch."""

    respondent: str
    year: int
    cells: int
    first: str  # hour of the first and last of them, YYYY-MM-DDTHH; "" if series.json names none
    last: str


@dataclass(frozen=True)
class Hours:
    """Coverage: shares of valid hours, hours missing at the source, and cells restated by operators."""

    coverage: Coverage
    gaps: tuple[Gap, ...]  # longest first
    valid: int  # hour × variable cells
    masked: Mapping[str, int]  # reason → cells
    suspect: int  # cells that are kept and flagged
    revised: tuple[Revised, ...]
    daily: DailyTotals | None  # None: there are no daily values

    @property
    def asked(self) -> int:
        """Cells that were asked for: a series covers its whole year, also where a run asked for one month of it."""
        return self.valid + sum(cells for reason, cells in self.masked.items() if reason != "unasked")


@dataclass(frozen=True)
class ResponseRate:
    """Responses over time, from the arrival times of stored pages. Refused requests have no time."""

    first: str  # UTC, ISO 8601
    last: str
    span_s: float
    responses: int
    bins: Floats  # [bin] responses per second in equal parts of the span
    busiest: float  # responses per second in the busiest minute, or in the whole span if that is shorter
    ceiling: float | None  # requests per second that the source's policy allows; None: no stated limit


@dataclass(frozen=True)
class Extraction:
    """The fetched and verified data."""

    summary: Summary
    rows: Mapping[str, int]  # respondent → rows
    rate: ResponseRate | None  # None: no page was stored
    retried: int  # shards that needed more than one attempt
    workers: int


@dataclass(frozen=True)
class Training:
    """Learning curves of a forecaster's training so far."""

    loss: tuple[Floats, Floats]  # step, pinball loss in scales
    skill: Mapping[str, tuple[Floats, Floats]]  # respondent or "mean" → step, validation skill
    coverage80: tuple[Floats, Floats]  # step, share of hours in the 80 % interval
    ranks: tuple[int, ...]  # every ring size that a step ran with
    tokens_per_s: float  # median over steps
    result: Mapping[str, Any]  # result.json; empty while it runs
    config: Mapping[str, Any]
    verified: bool  # the coordinator accepted the result
    skipped: int = 0  # lines of metrics.jsonl that can't be read


@dataclass(frozen=True)
class Day:
    """The forecast of a local day, `[hour]`, MWh in the hour."""

    respondent: str
    date: str  # local, YYYY-MM-DD
    reason: str  # why it was chosen
    hour: Floats  # hours since local midnight at the end of each hour
    quantiles: Mapping[str, Floats]  # "q0.025" … "q0.975"
    operator: Floats
    demand: Floats


@dataclass(frozen=True)
class Forecasts:
    """Chosen days, and errors over the last year of the table."""

    file: str
    year: int  # local
    days: tuple[Day, ...]
    mae: Mapping[str, tuple[float, float]]  # respondent → forecaster's, operators', MWh, on hours that both have
    inside80: Mapping[str, float]  # share of hours
    trained: tuple[str, str]  # training and validation periods as configured; "": the default


@dataclass(frozen=True)
class Against:
    """What forecasts gain over a rival: a difference of mean absolute errors, as a share of the rival's."""

    skill: float
    note: str  # p of the test; of a mean, in how many respondents the gain is certain


@dataclass(frozen=True)
class Backtest:
    """A judged backtest; months are local."""

    model: str
    first: str  # hours, UTC, YYYY-MM-DDTHH
    last: str
    rivals: tuple[str, ...]
    rows: Mapping[
        str, tuple[Mapping[str, Against], float, float]
    ]  # respondent → by rival, MAE in MWh, share of hours in the 80 % interval
    mean: Mapping[str, Against]
    horizons: Mapping[str, Against]  # hours ahead → over the operators, as means
    months: tuple[
        Floats, Floats, Floats
    ]  # months since 1970-01; mean skill over the operators; mean share in the 80 % interval
    peeks: bool  # the judge found hours used after a cutoff


@dataclass(frozen=True)
class Backtests:
    """The backtests of a folder."""

    found: tuple[Backtest, ...]


@dataclass(frozen=True)
class Week:
    """A week of dispatch, `[hour]`, MW. The policy is replayed; the optimum knows the week."""

    region: str
    start: str  # "week 12 of the test year"
    load: Floats
    policy: Floats  # residual load
    optimum: Floats
    stores: Mapping[str, Floats]  # power into the grid


@dataclass(frozen=True)
class Control:
    """A control training: results on the test year, learning curves, a week per region."""

    result: Mapping[str, Any]  # result.json; empty while it runs
    pops: Mapping[str, Mapping[str, float]]  # region → policy → PoP (share of the perfect-foresight saving)
    history: tuple[Floats, Floats]  # version, PoP on the validation year
    curve: tuple[str, Floats, Floats]  # what the learner minimises or earns: name of the metric, version, value
    weeks: tuple[Week, ...]
    intro: str  # the first paragraph of report.md
    tables: Mapping[str, tuple[tuple[str, ...], ...]]  # region → rows of its metrics, the header first
    known: str
    verified: bool
    skipped: int = 0  # lines of metrics.jsonl that can't be read


@dataclass(frozen=True)
class Provenance:
    """The origin of everything: rows of a table, (what, value)."""

    origins: tuple[str, ...]
    terms: tuple[Terms, ...]  # licence and citation of each source
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """A whole report."""

    data: str
    running: str  # the command of the coordinator that uses the folder now; "" if there is none
    demand: Regions | Absent
    duration: Regions | Absent
    mix: Regions | Absent
    operators: Regions | Absent
    interchange: Regions | Absent
    coverage: Hours | Absent
    extraction: Extraction | Absent
    training: Training | Absent
    forecasts: Forecasts | Absent
    backtests: Backtests | Absent
    control: Control | Absent
    provenance: Provenance | Absent
