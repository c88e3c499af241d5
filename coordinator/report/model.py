"""What a report says, as plain data: one dataclass a section, or `Absent` where a stage has not run or can't be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.coverage import Coverage
from ingest.manifest import Summary
from ingest.models import Gap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Absent:
    """Why there is nothing to show, and the command that makes it."""

    why: str
    command: str


@dataclass(frozen=True)
class Revised:
    """Cells of a respondent-year whose value changed in a later fetch."""

    respondent: str
    year: int
    cells: int
    first: str  # hour of the first and last of them, YYYY-MM-DDTHH; "" where series.json names none
    last: str


@dataclass(frozen=True)
class Hours:
    """Coverage: shares of valid hours, what the source does not have, what operators restated."""

    coverage: Coverage
    gaps: tuple[Gap, ...]  # longest first
    valid: int  # hour × variable cells
    masked: Mapping[str, int]  # reason → cells
    revised: tuple[Revised, ...]


@dataclass(frozen=True)
class Pace:
    """Answers over time, from the moments at which pages that were kept arrived. Refused requests carry no moment."""

    first: str  # UTC, ISO 8601
    last: str
    span_s: float
    answers: int
    bins: Floats  # [bin] answers a second in equal parts of the span
    busiest: float  # answers a second in the busiest minute; in the whole span where that is shorter
    ceiling: float | None  # requests a second that the source's policy allows; None: no stated limit


@dataclass(frozen=True)
class Extraction:
    """What was fetched and proved."""

    summary: Summary
    rows: Mapping[str, int]  # respondent → rows
    pace: Pace | None  # None: no page was kept
    restarts: int  # shards that needed more than one attempt
    workers: int


@dataclass(frozen=True)
class Training:
    """Curves of a forecaster's training, as far as it has come."""

    loss: tuple[Floats, Floats]  # step, pinball loss in scales
    skill: Mapping[str, tuple[Floats, Floats]]  # respondent or "mean" → step, validation skill
    coverage80: tuple[Floats, Floats]  # step, share of hours in the 80 % interval
    ranks: tuple[int, ...]  # every number of ranks that a step was made with
    tokens_per_s: float  # median over steps
    result: Mapping[str, Any]  # result.json; empty while it runs
    config: Mapping[str, Any]
    proved: bool  # the coordinator accepted the result


@dataclass(frozen=True)
class Day:
    """A local day's forecast, `[hour]`, MWh in the hour."""

    respondent: str
    date: str  # local, YYYY-MM-DD
    why: str  # it was chosen
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
    trained: tuple[str, str]  # periods that trained and validated, as asked for; "": the defaults


@dataclass(frozen=True)
class Week:
    """A week of dispatch, `[hour]`, MW. The policy is played again; the optimum knows the week."""

    region: str
    start: str  # "week 12 of the test year"
    load: Floats
    policy: Floats  # residual load
    optimum: Floats
    stores: Mapping[str, Floats]  # power into the grid


@dataclass(frozen=True)
class Control:
    """A control training: what the test year said, how it learned, a week a region."""

    result: Mapping[str, Any]  # result.json; empty while it runs
    pops: Mapping[str, Mapping[str, float]]  # region → policy → PoP
    history: tuple[Floats, Floats]  # version, PoP on the validation year
    curve: tuple[str, Floats, Floats]  # name of the figure, version, value: what the learner minimises or earns
    weeks: tuple[Week, ...]
    intro: str  # the first paragraph of report.md
    tables: Mapping[str, tuple[tuple[str, ...], ...]]  # region → rows of its numbers, the header first
    known: str
    proved: bool


@dataclass(frozen=True)
class Case:
    """Repeats of one case of the ring benchmark, pooled."""

    name: str
    length: int  # tokens
    causal: bool
    seconds: float  # median
    peak_mb: float  # the largest process
    predicted: float | None  # seconds


@dataclass(frozen=True)
class Scaling:
    """A training step over one sequence."""

    hours: int
    ranks: int
    seconds: float
    peak_mb: float  # the largest rank


@dataclass(frozen=True)
class Ring:
    """The repository's measurements, which are not of this folder's run."""

    cases: tuple[Case, ...]
    throttled: tuple[Case, ...]  # with a predicted time
    scaling: tuple[Scaling, ...]
    machine: str
    when: str  # first and last measurement


@dataclass(frozen=True)
class Provenance:
    """Where everything came from: rows of a table, (what, value)."""

    origins: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """A whole report."""

    data: str
    hours: Hours | Absent
    extraction: Extraction | Absent
    training: Training | Absent
    forecasts: Forecasts | Absent
    control: Control | Absent
    ring: Ring | Absent
    provenance: Provenance | Absent
