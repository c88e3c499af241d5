"""Judge a file on a folder: read both, find rivals, score, find peeks; and the verdict as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.array_types import Floats
from ingest.columns import hour_text
from ingest.publication import DEFAULT, Publication
from ingest.zones import zone_of
from worker.forecast.judge.peeking import Finding, findings
from worker.forecast.judge.reference import OURS, Actuals, add_baselines, add_ours, read_actuals
from worker.forecast.judge.scoring import Line, mean_lines, score
from worker.forecast.judge.submission import Rows, Submission
from worker.forecast.predict import load_model, predict
from worker.training.tokens import Period

Log = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """The scores of a file, and what is wrong with it."""

    model: str
    levels: tuple[float, ...]
    period: Period
    by_respondent: dict[str, Line]
    mean: Line
    found: tuple[Finding, ...]
    notes: tuple[str, ...]  # of what could not be compared

    @property
    def peeks(self) -> bool:
        """Whether hours after a cutoff were used."""
        return any(one.peeks for one in self.found)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain maps; None where there is no figure."""
        return {
            "model": self.model,
            "levels": list(self.levels),
            "period": [hour_text(self.period.first), hour_text(self.period.last)],
            "respondents": _plain(self.by_respondent),
            "mean": _plain(self.mean),
            "findings": [asdict(one) for one in self.found],
            "peeks": self.peeks,
            "notes": list(self.notes),
        }


def judge(file: Submission, data_dir: Path, run: Path | None, log: Log, publication: Publication = DEFAULT) -> Verdict:
    """Judge the forecasts of a file.

    Args:
        file: as read.
        data_dir: folder with the actual hours.
        run: folder of a training, or of a checkpoint; where there is none, ours is left out, and said. None: ours is not asked for.
        log: called with a message before each step.
        publication: when values are published, for the baselines; a trained model has its own, and a difference is said.
    """
    for rows in file.respondents:
        zone_of(rows.respondent)
    period = Period(
        min(int(rows.hour.min()) for rows in file.respondents), max(int(rows.hour.max()) for rows in file.respondents)
    )
    notes: list[str] = []

    def note(message: str) -> None:
        notes.append(message)
        log(message)

    actuals = [read_actuals(data_dir, rows, note, publication) for rows in file.respondents]
    names = [rows.respondent for rows in file.respondents]
    ours = _ours(run, data_dir, names, period, note, publication) if run is not None else {}
    lines, found = {}, []
    for rows, own in zip(file.respondents, actuals, strict=True):
        log(f"judging {rows.respondent}")
        own_period = Period(int(rows.hour.min()), int(rows.hour.max()))
        add_baselines(own, data_dir, own_period, note, log, publication)
        add_ours(own, ours, period.first)
        lines[rows.respondent] = score(rows, file.levels, own)
        notes += _gaps(rows, own)
        found += findings(rows, file.levels, own)
    return Verdict(file.model, file.levels, period, lines, mean_lines(lines), tuple(found), tuple(notes))


def _ours(
    run: Path, data_dir: Path, respondents: Sequence[str], period: Period, note: Log, publication: Publication
) -> dict[str, Floats]:
    """Return a trained model's medians of the period, of the respondents it was trained on."""
    if not (run / "result.json").exists() and not (run / "state.json").exists():
        note(f"{OURS} is left out: {run} holds no finished training")
        return {}
    trained = load_model(run)
    last = int(trained.state["validate"][1])
    if period.first <= last:
        note(
            f"{OURS} is left out: {trained.path} was trained and validated on hours up to {hour_text(last)}, which the file forecasts"
        )
        return {}
    if trained.publication != publication:
        note(
            f"{OURS} knows what `{trained.publication}` publishes, as it was trained; the baselines what `{publication}` does"
        )
    store = trained.open_store(data_dir, note)
    found = {}
    for name in respondents:
        there = store.period(trained.respondents.index(name)) if name in trained.respondents else None
        if there is None or period.first < there.first or period.last > there.last:
            note(f"{name}: {OURS} is left out: {trained.path} has not all of {period}")
            continue
        found[name] = predict(trained, store, name, period).median
    return found


def _gaps(rows: Rows, actuals: Actuals) -> list[str]:
    """Return a note on hours that the file lacks between its first and its last."""
    there = np.unique(rows.hour[np.isfinite(rows.point)])
    if not len(there):
        return [f"{rows.respondent}: no row has a forecast"]
    missing = int(there[-1] - there[0] + 1 - len(there))
    first = int(there[np.flatnonzero(np.diff(there) > 1)[0]]) + 1 if missing else 0
    unknown = int((~np.isfinite(actuals.at(actuals.demand, there))).sum())
    notes = [f"{rows.respondent}: the file lacks {missing:,} hours, the first {hour_text(first)}"] if missing else []
    return notes + ([f"{rows.respondent}: {unknown:,} hours have no actual in the folder"] if unknown else [])


def describe(verdict: Verdict, file: Path) -> list[str]:
    """Return the verdict as lines of text."""
    lines = [f"{file}: {verdict.model}, {verdict.period} UTC", ""]
    names = list(verdict.mean["over"])
    lines.append(
        f"{'skill over':<10}"
        + "".join(f"{name:>20}" for name in names)
        + f"{'MAE, MWh':>10}{'MASE':>7}{'CRPS, MWh':>11}  coverage"
    )
    for code, line in verdict.by_respondent.items():
        cells = "".join(f"{_over(line['over'].get(name)):>20}" for name in names)
        covered = ", ".join(f"{wide} in {share:.0%}" for wide, share in line.get("coverage", {}).items())
        crps = f"{line['crps']:11,.1f}" if "crps" in line else f"{'–':>11}"
        lines.append(f"{code:<10}{cells}{line['mae']:10,.1f}{line['mase']:7.2f}{crps}  {covered or '–'}")
    means = [f"{one['skill']:+.3f} ({one['better']} of {one['of']})" for one in verdict.mean["over"].values()]
    lines.append(f"{'mean':<10}" + "".join(f"{cell:>20}" for cell in means))
    if twice := [name for name in verdict.by_respondent if name not in verdict.mean["respondents"]]:
        lines.append(
            f"the mean leaves out {', '.join(twice)}, which {'hold' if len(twice) > 1 else 'holds'} another respondent of the file"
        )
    lines += ["in brackets: p of a Diebold-Mariano test; of the mean: respondents with a gain of p < 0.01", ""]
    for kind, parts in verdict.mean["parts"].items():
        shown = [
            f"{label} {one['skill']:+.3f}" + (f" ({one['better']} of {one['of']})" if "better" in one else "")
            for label, one in parts.items()
            if math.isfinite(one["skill"])
        ]
        lines.append(f"skill over DF by {kind}: {', '.join(shown)}")
    lines += _coverage_by_month(verdict.mean["parts"].get("month", {}))
    lines += ["", *(f"note: {note}" for note in verdict.notes)]
    lines += [str(one) for one in verdict.found]
    said = "uses hours after its cutoff" if verdict.peeks else "no use of hours after a cutoff was found"
    return [*lines, f"verdict: {verdict.model} {said}" if verdict.peeks else f"verdict: {said}"]


def _coverage_by_month(months: Line) -> list[str]:
    """Return a line an interval: the share of hours inside it, month by month, as the mean over respondents."""
    wides = dict.fromkeys(wide for one in months.values() for wide in one.get("coverage", {}))
    shares = {wide: [(label, one["coverage"].get(wide, math.nan)) for label, one in months.items()] for wide in wides}
    return [
        f"{wide} interval covers by month: {', '.join(f'{label} {share:.0%}' for label, share in own if math.isfinite(share))}"
        for wide, own in shares.items()
    ]


def _over(one: Line | None) -> str:
    if one is None:
        return "–"
    return f"{one['skill']:+.3f} ({one['p']:.1g})" if math.isfinite(one["p"]) else f"{one['skill']:+.3f}"


def _plain(value: Any) -> Any:
    """Return nested maps with None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
