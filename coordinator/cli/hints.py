"""What to run next, which a command prints after its result."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from coordinator.stages.stage import STAGES
from ingest.errors import UsageError, quoted


def next_steps(stages: Collection[str], settings: Mapping[str, Any]) -> str:
    """Return the line that names the command to go on with after these stages.

    A training that the years on disk do not suffice for is not named: the report is, with what the training lacks.
    """
    folder = settings["data"]
    last = next(entry for entry in reversed(STAGES) if entry.name in stages)
    if last.name == "train":
        return f"next: {last.then} --data {quoted(folder)}{_forecast_of(settings)}"
    if last.name != "extract":
        return f"next: {last.then} --data {quoted(folder)}"
    from coordinator.stages.run_folder import read_config
    from coordinator.stages.years import too_few_years, years_on_disk

    config = b""
    with suppress(UsageError):  # the file is of a later command, which tells what is wrong with it
        config = read_config(settings["train-config"], "train-config")
    if lacking := too_few_years(folder, config, years_on_disk(folder), settings.get("source", "")):
        return f"next: coordinator report --data {quoted(folder)}\n{lacking}"
    return f"next: {last.then} --data {quoted(folder)}"


def _forecast_of(settings: Mapping[str, Any]) -> str:
    """Return the line that names a forecast by the training that ended, of its first respondent; empty where it has no result."""
    result = (settings["run"] or settings["data"] / "train") / "result.json"
    if not result.is_file():
        return ""
    region = json.loads(result.read_text("utf-8"))["respondents"][0]
    run = f" --run {quoted(settings['run'])}" if settings["run"] else ""
    return f"\nor, a forecast: coordinator forecast --region {region} --issue tomorrow --data {quoted(settings['data'])}{run}"
