"""Coverage picture: the share of hours with a valid value by respondent and month, one row per group of variables."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ingest import daily
from ingest.array_types import Floats
from ingest.build_series import Revision
from ingest.errors import UsageError, VerificationError, quoted
from ingest.files import atomic_write
from ingest.models import DAY
from ingest.snapshot import DAILY, read_whole

DAILY_PREFIX = "daily."  # of a variable of daily values, in a picture
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
        lambda variable: (
            variable not in ("D", "DF", "NG", "TI") and not variable.startswith(("NG.", "ID.", "D.", DAILY_PREFIX))
        ),
    ),
    ("daily", lambda variable: variable.startswith(DAILY_PREFIX)),
)
# Steps, not a ramp: one missing hour in a month is 99.87 % and must be visible.
STEPS = (0.0, 1e-9, 0.5, 0.9, 0.99, 0.9999, 1.0)
LABELS = ("none", "under 50 %", "50–90 %", "90–99 %", "99–99.99 %", "every hour")
NOTHING = "#e6e6e6"  # no such variable, no series, or never asked for
COLOURS = ("#b2182b", "#ef8a62", "#fddbc7", "#d1e5f0", "#67a9cf", "#2166ac")
CELL_PX = (14, 26)  # width of a month, height of a row; a white line parts two of them
FONT_PX, TITLE_PX = 12, 17
MARGIN_PX, TOP_PX = 8, 36  # beside the picture; of its first row


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
    # Pillow, and here: it loads in a twentieth of the time that matplotlib takes, and `coverage` needs neither.
    from PIL import Image, ImageDraw, ImageFont

    small, large = (ImageFont.load_default(size) for size in (FONT_PX, TITLE_PX))
    names = [f"{respondent}  {group}" for respondent, group in picture.rows]
    left = MARGIN_PX + max(int(small.getlength(name)) for name in names) + FONT_PX
    count, width = picture.share.shape
    right, bottom = left + width * CELL_PX[0], TOP_PX + count * CELL_PX[1]
    title = f"Hours with a valid value, by month (data: {', '.join(picture.origins)})"
    labels = [label.replace("–", " to ") for label in reversed(LABELS)]  # Pillow's own font has no dash
    legend = [*zip(labels, reversed(COLOURS), strict=True), ("no such variable, or not asked for", NOTHING)]
    steps = [2 * FONT_PX + int(small.getlength(label)) + FONT_PX for label, _ in legend]
    size = max(right, left + int(large.getlength(title)), MARGIN_PX + sum(steps)) + MARGIN_PX, bottom + 4 * FONT_PX
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    pen.text((left, MARGIN_PX), title, "black", large)
    for year, month in enumerate(picture.months[::12]):
        pen.text((left + 12 * year * CELL_PX[0] + 2, bottom + 4), month[:4], "black", small)
    for row, name in enumerate(names):
        top = TOP_PX + row * CELL_PX[1]
        pen.text((left - FONT_PX // 2, top + CELL_PX[1] // 2), name, "black", small, anchor="rm")
        for column, share in enumerate(picture.share[row].tolist()):
            x = left + column * CELL_PX[0]
            pen.rectangle((x, top, x + CELL_PX[0] - 2, top + CELL_PX[1] - 2), colour_of(share))
    for row in range(1, count):
        if picture.rows[row][0] != picture.rows[row - 1][0]:
            y = TOP_PX + row * CELL_PX[1] - 1
            pen.line((left, y, right - 1, y), "black")
    for column in range(12, width, 12):
        x = left + column * CELL_PX[0] - 1
        pen.line((x, TOP_PX, x, bottom - 1), "black")
    at, middle = MARGIN_PX, bottom + 5 * FONT_PX // 2
    for (label, colour), step in zip(legend, steps, strict=True):
        pen.rectangle((at, middle - FONT_PX // 2, at + 3 * FONT_PX // 2, middle + FONT_PX // 2), colour)
        pen.text((at + 2 * FONT_PX, middle), label, "black", small, anchor="lm")
        at += step
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def colour_of(share: float) -> str:
    """Return the colour of a month's share of valid hours, 0…1 or NaN."""
    return NOTHING if np.isnan(share) else COLOURS[bisect_right(STEPS[1:-1], share)]


def read_summaries(data_dir: Path) -> list[SeriesSummary]:
    """Return every series.json that readers see, with daily values; a damaged file raises VerificationError."""
    return read_whole(
        data_dir, lambda folder: with_daily(summaries_in(folder), daily.summaries_in(folder.parent / DAILY))
    )


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


def with_daily(summaries: Iterable[SeriesSummary], found: Iterable[daily.DailySummary]) -> list[SeriesSummary]:
    """Return summaries with the daily values of their respondent and year, a day as 24 hours; years without a series are left out."""
    days = {(one.respondent, int(year)): counts for one in found for year, counts in one.counts.items()}
    joined = []
    for one in summaries:
        counts = days.get((one.respondent, one.year), {})
        more = {
            DAILY_PREFIX + name: {reason: [DAY * count for count in months] for reason, months in reasons.items()}
            for name, reasons in counts.items()
        }
        joined.append(msgspec.structs.replace(one, variables={**one.variables, **more}))
    return joined


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
        raise UsageError(
            f"no series in {folder} to draw; run `coordinator start --extract --data {quoted(folder)}` to make some"
        )
    target = folder / "coverage.png"
    atomic_write(target, draw(coverage(with_daily(summaries, daily.summaries_in(folder / DAILY)))))
    return target
