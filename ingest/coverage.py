"""Coverage picture: the share of hours with a valid value by respondent and month, one row per group of variables."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ingest.array_types import Floats
from ingest.build_series import Revision
from ingest.errors import UsageError, VerificationError
from ingest.files import atomic_write
from ingest.snapshot import read_whole

GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("demand", lambda variable: variable == "D"),
    ("forecast", lambda variable: variable == "DF"),
    ("generation", lambda variable: variable == "NG"),
    ("interchange", lambda variable: variable == "TI"),
    ("fuels", lambda variable: variable.startswith("NG.")),
    ("neighbours", lambda variable: variable.startswith("ID.")),
    ("sub-areas", lambda variable: variable.startswith("D.")),
    (
        "other",
        lambda variable: variable not in ("D", "DF", "NG", "TI") and not variable.startswith(("NG.", "ID.", "D.")),
    ),
)
# Steps, not a ramp: one missing hour in a month is 99.87 % and must be visible.
STEPS = (0.0, 1e-9, 0.5, 0.9, 0.99, 0.9999, 1.0)
LABELS = ("none", "under 50 %", "50–90 %", "90–99 %", "99–99.99 %", "every hour")
NOTHING = "#e6e6e6"  # no such variable, no series, or never asked for
COLOURS = ("#b2182b", "#ef8a62", "#fddbc7", "#d1e5f0", "#67a9cf", "#2166ac")


class SeriesSummary(msgspec.Struct):
    """The parts of a series.json that are drawn: cells by variable, reason and month, and revised cells."""

    respondent: str
    year: int
    origin: str
    month_hours: list[int]
    variables: dict[str, dict[str, list[int]]]
    revisions: list[Revision] = []


@dataclass(frozen=True)
class Coverage:
    """Shares of valid hours among those asked for, `share[row, month]` in 0…1; NaN where none was, or there is no such variable."""

    rows: tuple[tuple[str, str], ...]  # respondent, group
    months: tuple[str, ...]  # "2019-01", …
    share: Floats
    origins: tuple[str, ...]


def coverage(summaries: Iterable[SeriesSummary]) -> Coverage:
    """Return the shares of valid cells of respondent-years, by respondent, group and month. No I/O."""
    summaries = tuple(summaries)
    respondents = sorted({one.respondent for one in summaries})
    years = range(min(one.year for one in summaries), max(one.year for one in summaries) + 1)
    seen = {(one.respondent, group) for one in summaries for group, has in GROUPS if any(map(has, one.variables))}
    rows = tuple((name, group) for name in respondents for group, _ in GROUPS if (name, group) in seen)
    share = np.full((len(rows), 12 * len(years)), np.nan)
    has_of = dict(GROUPS)
    by_key = {(one.respondent, one.year): one for one in summaries}
    for i, (respondent, group) in enumerate(rows):
        for k, year in enumerate(years):
            one = by_key.get((respondent, year))
            own = [counts for name, counts in one.variables.items() if has_of[group](name)] if one else []
            if one and own:
                asked = np.array(one.month_hours) * len(own) - sum(np.array(c.get("unasked", [0] * 12)) for c in own)
                valid = np.sum([counts[name] for counts in own for name in ("ok", "suspect") if name in counts], axis=0)
                share[i, 12 * k : 12 * k + 12] = np.where(asked > 0, valid / np.maximum(asked, 1), np.nan)
    months = tuple(f"{year}-{month:02d}" for year in years for month in range(1, 13))
    return Coverage(rows, months, share, tuple(sorted({one.origin for one in summaries})))


def draw(picture: Coverage) -> bytes:
    """Return coverage drawn as PNG. The title names the origins of the data."""
    # Here, because matplotlib takes a second to load and `coverage` does not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

    count, width = picture.share.shape
    figure = Figure(figsize=(max(8.0, 2.6 + 0.13 * width), 1.9 + 0.24 * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ListedColormap(COLOURS)
    norm = BoundaryNorm(np.array((*STEPS[:-1], 1.1)), len(COLOURS))
    axes.pcolormesh(
        np.arange(width + 1),
        np.arange(count + 1),
        np.ma.masked_invalid(picture.share),
        cmap=colours,
        norm=norm,
        edgecolors="white",
        linewidth=0.4,
    )
    axes.set_facecolor(NOTHING)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(count) + 0.5, [f"{name}  {group}" for name, group in picture.rows], fontsize=8)
    axes.set_xticks(np.arange(0, width + 1, 12), [month[:4] for month in picture.months[::12]] + [""], fontsize=9)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("left")
    for i in range(1, count):
        if picture.rows[i][0] != picture.rows[i - 1][0]:
            axes.axhline(i, color="black", linewidth=1.0)
    for x in range(12, width, 12):
        axes.axvline(x, color="black", linewidth=0.6)
    axes.tick_params(length=0)
    origin = ", ".join(picture.origins)
    axes.set_title(f"Hours with a valid value, by month (data: {origin})", fontsize=11, loc="left")
    boxes = [axes.fill_between([], [], color=colour) for colour in (*reversed(COLOURS), NOTHING)]
    labels = (*reversed(LABELS), "no such variable, or not asked for")
    figure.legend(boxes, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def read_summaries(data_dir: Path) -> list[SeriesSummary]:
    """Return every series.json that readers see, by respondent and year; a damaged one raises VerificationError."""
    return read_whole(data_dir, summaries_in)


def summaries_in(folder: Path) -> list[SeriesSummary]:
    """Return every series.json in a folder of series, by respondent and year.

    Raises:
        VerificationError: one is damaged.
    """
    summaries = []
    for path in sorted(folder.glob("*/*/series.json")):
        try:
            summaries.append(msgspec.json.decode(path.read_bytes(), type=SeriesSummary))
        except (OSError, ValueError) as error:
            raise VerificationError(f"can't read {path}: {error}; run `coordinator verify`") from error
    return summaries


def write_coverage(data_dir: Path | str) -> Path:
    """Write coverage.png into the data folder, from every series.json; a damaged one raises VerificationError.

    Returns:
        The path of the picture.

    Raises:
        UsageError: there is no series.
    """
    folder = Path(data_dir)
    summaries = summaries_in(folder / "series")
    if not summaries:
        raise UsageError(f"no series in {folder} to draw; run `coordinator start --extract` to make some")
    target = folder / "coverage.png"
    atomic_write(target, draw(coverage(summaries)))
    return target
