"""Whether the years on disk suffice for a training: one year trains and validates, a later one is kept for the test.

`worker/training/config.py` refuses too few; the check here comes before a ring is started for them.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from ingest import manifest
from ingest.errors import UsageError, quoted
from ingest.settings import parse_codes

LEAST_YEARS = 2
ADVISED_YEARS = 3  # that the message asks for
NAMED = 12  # respondents that the message names; more than that are those of the settings
FIRST_YEAR = 2019  # the default of --start


def years_on_disk(data_dir: Path) -> dict[str, set[int]]:
    """Return the years of each respondent whose series have demand."""
    years: dict[str, set[int]] = {}
    for built in manifest.build_results(data_dir):
        if "D" in built.variables:
            years.setdefault(built.respondent, set()).add(built.year)
    return years


def too_few_years(data_dir: Path, config: bytes, years: Mapping[str, set[int]]) -> str:
    """Return why a training cannot begin with these years, and what to run; "" if they suffice.

    Args:
        data_dir: data folder, which the command names.
        config: content of the training's configuration file; empty: its defaults.
        years: respondent → years on disk.
    """
    settings = tomllib.loads(config.decode())
    respondents = parse_codes(settings.get("respondents") or ())
    sets = [years.get(name, set()) for name in respondents or sorted(years)]
    common = sorted(set.intersection(*sets)) if sets else []
    if settings.get("validate") or len(common) >= LEAST_YEARS:
        return ""
    listed = f" ({', '.join(map(str, common))})" if common else ""
    shared = " that all respondents have" if len(sets) > 1 else ""
    names = respondents or sorted(years)
    codes = f" --respondents {','.join(names)}" if 0 < len(names) <= NAMED else ""
    same = " with the same --respondents" if len(names) > NAMED else ""
    held = f"{len(common)}{shared}{listed}" if sets else "none with demand (D)"
    first, last = advised_years(common)
    return (
        f"a training needs series of {LEAST_YEARS} years, one to train and validate and a later one for the test; {data_dir} holds "
        f"{held}. Run `coordinator start --extract --start {first} --end {last}{codes} --data {quoted(data_dir)}`{same}, "
        "or name the hours as `train` and `validate` in the file of --train-config"
    )


def advised_years(common: list[int]) -> tuple[int, int]:
    """Return the first and the last year to extract, such that they include those on disk."""
    if not common:
        return FIRST_YEAR, FIRST_YEAR + ADVISED_YEARS - 1
    first = min(max(common[-1] - ADVISED_YEARS + 1, FIRST_YEAR), common[0])
    return first, max(common[-1], first + ADVISED_YEARS - 1)


def check_years(data_dir: Path, config: bytes) -> None:
    """Check that the years on disk suffice. A folder without any series is for `ingest.data_folder.check_series` to refuse.

    Raises:
        UsageError: they do not.
    """
    years = years_on_disk(data_dir)
    if years and (problem := too_few_years(data_dir, config, years)):
        raise UsageError(problem)
