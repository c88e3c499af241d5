"""Whether the years of a data folder suffice for a training of the forecaster, and for one of control.

`worker/training/config.py` and `worker/control/datasets.py` refuse too few; the checks here come before anything is started for them:
before an extraction of the same command, too.
"""

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coordinator.stages.extract.plan import ExtractOptions
from ingest import manifest
from ingest.errors import UsageError, quoted
from ingest.plan import plan_builds
from ingest.settings import parse_codes
from ingest.sources import get_source

LEAST_YEARS = 2  # of a training of the forecaster
CONTROL_YEARS = 3  # in a row
NAMED = 12  # respondents that a message names; more than that are those of the settings
FIRST_YEAR = 2019  # the default of --start
Years = Mapping[str, Collection[int]]  # respondent → years


def years_on_disk(data_dir: Path) -> dict[str, set[int]]:
    """Return the years of each respondent whose series have demand."""
    years: dict[str, set[int]] = {}
    for built in manifest.build_results(data_dir):
        if "D" in built.variables:
            years.setdefault(built.respondent, set()).add(built.year)
    return years


def years_after(extractions: Iterable[ExtractOptions], years: Years) -> dict[str, set[int]]:
    """Return the years that the respondents can have after extractions: each all of them, as what a source lacks is not known before."""
    found = {name: set(those) for name, those in years.items()}
    for options in extractions:
        asked = range(int(options.start[:4]), int(options.end[:4]) + 1)
        for build in plan_builds(options.shards, options.respondents, asked):
            found.setdefault(build.respondent, set()).add(build.year)
    every = set().union(*found.values())
    return dict.fromkeys(found, every)


def too_few_years(
    data_dir: Path, config: bytes, years: Years, source: str = "", *, after: bool = False, advised: int = LEAST_YEARS
) -> str:
    """Return why a training cannot begin with these years, and what to run; "" if they suffice.

    Args:
        data_dir: data folder, which the command names.
        config: content of the training's configuration file; empty: its defaults.
        years: respondent → years on disk.
        source: of --source, for the command; "": that of the hours on disk.
        after: The years are those after an extraction that has not begun.
        advised: number of years that the command to run asks for; more than the training needs where a control training follows it.
    """
    settings = tomllib.loads(config.decode())
    asked = parse_codes(settings.get("respondents") or ())
    common = _common(years, asked)
    if settings.get("validate") or len(common) >= LEAST_YEARS:
        return ""
    return (
        f"a training needs series of {LEAST_YEARS} years, one to train and validate and a later one for the test; "
        f"{_held(data_dir, years, asked, common, after=after)}. Run {_command(data_dir, years, asked, common, source, advised)}, "
        "or name the hours as `train` and `validate` in the file of --train-config"
    )


def too_few_for_control(data_dir: Path, years: Years, source: str = "", *, after: bool = False) -> str:
    """Return why a control training cannot begin with these years, and what to run; "" if they suffice. See `too_few_years`."""
    common = _common(years)
    if len(common) >= CONTROL_YEARS and common == list(range(common[0], common[-1] + 1)):
        return ""
    return (
        f"a control training needs series of {CONTROL_YEARS} years in a row, the last two to validate and to test; "
        f"{_held(data_dir, years, (), common, after=after)}. Run {_command(data_dir, years, (), common, source, CONTROL_YEARS)}"
    )


def advised_years(common: list[int], number: int) -> tuple[int, int]:
    """Return the first and the last of at least `number` years to extract, such that they include those on disk."""
    if not common:
        return FIRST_YEAR, FIRST_YEAR + number - 1
    first = min(max(common[-1] - number + 1, FIRST_YEAR), common[0])
    return first, max(common[-1], first + number - 1)


def check_years(data_dir: Path, config: bytes) -> None:
    """Check that the years on disk suffice. A folder without any series is for `ingest.data_folder.check_series` to refuse.

    Raises:
        UsageError: they do not.
    """
    years = years_on_disk(data_dir)
    if years and (problem := too_few_years(data_dir, config, years)):
        raise UsageError(problem)


def check_control_years(data_dir: Path) -> None:
    """Check that the years on disk suffice for a control training, as `check_years` does."""
    years = years_on_disk(data_dir)
    if years and (problem := too_few_for_control(data_dir, years)):
        raise UsageError(problem)


def check_planned(data_dir: Path, planned: Mapping[str, Any], source: str) -> None:
    """Check that the years on disk and those to be extracted are enough for the stages that follow.

    Args:
        data_dir: data folder.
        planned: stage of a command → its options.
        source: of --source.

    Raises:
        UsageError: the years do not suffice; nothing was extracted.
    """
    extractions = [options for options in planned.values() if isinstance(options, ExtractOptions)]
    years, after, problem = years_on_disk(data_dir), bool(extractions), ""
    if after:
        years = years_after(extractions, years)
    else:
        source = ""
    if "train" in planned:
        advised = CONTROL_YEARS if "rollouts" in planned else LEAST_YEARS
        problem = too_few_years(data_dir, planned["train"].config, years, source, after=after, advised=advised)
    if "rollouts" in planned:
        problem = problem or too_few_for_control(data_dir, years, source, after=after)
    if problem and years:
        raise UsageError(problem)


def source_of(data_dir: Path) -> str:
    """Return the `--source` that the hours on disk came from; "" for the synthetic ones, or if there are none."""
    for result in manifest.shard_results(data_dir):
        kind = result.shard.source
        if result.origin == "recordings":
            return "recordings:PATH"
        if result.origin != "synthetic":
            return kind if urlsplit(get_source(kind).url).hostname == result.origin else f"{kind}+URL"
    return ""


def _common(years: Years, asked: Collection[str] = ()) -> list[int]:
    sets = [set(years.get(name, ())) for name in asked or sorted(years)]
    return sorted(set.intersection(*sets)) if sets else []


def _held(data_dir: Path, years: Years, asked: Collection[str], common: list[int], *, after: bool) -> str:
    """Return the words about what a folder holds."""
    listed = f" ({', '.join(map(str, common))})" if common else ""
    shared = " that all respondents have" if len(asked or years) > 1 else ""
    if after:
        return f"{data_dir} would hold {len(common)}{listed} after this extraction"
    return f"{data_dir} holds " + (f"{len(common)}{shared}{listed}" if asked or years else "none with demand (D)")


def _command(data_dir: Path, years: Years, asked: Collection[str], common: list[int], source: str, number: int) -> str:
    """Return the command that extracts `number` years."""
    first, last = advised_years(common, number)
    names = asked or sorted(years)
    codes = f" --respondents {','.join(names)}" if 0 < len(names) <= NAMED else ""
    same = " with the same --respondents" if len(names) > NAMED else ""
    source = source or source_of(data_dir)
    named = f" --source {quoted(source)}" if source not in ("", "synthetic") else ""
    return f"`coordinator start --extract{named} --start {first} --end {last}{codes} --data {quoted(data_dir)}`{same}"
