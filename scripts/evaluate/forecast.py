"""Evaluate forecasters on test hours: `python -m scripts.evaluate.forecast baselines | run | plot | docs`.

  baselines  fits running bias, ridge and LightGBM on the same tokens and writes their forecasts to one Parquet file
  run        scores the operators' forecast, the weekly naive one, the baselines and each run: one JSON line a forecaster and
             respondent, with the skill over the operators' forecast and over the best baseline, and a Diebold-Mariano test of each
  plot       draws skill bars, the ablation's curve and (with --data and --run) fan charts of chosen days
  docs       rewrites the generated sections of docs/reference/forecasting.md from the lines alone

Choices are made on validation hours; test hours are only scored. LightGBM needs the group `bench-forecast`:
`uv run --group bench-forecast python -m scripts.evaluate.forecast …`; without it its baselines are left out by name.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.catalog import distinct
from ingest.errors import IngestError
from ingest.loader import respondents_on_disk
from ingest.publication import DEFAULT, Publication
from scripts.bench.common import append, parser
from scripts.evaluate.forecast_report import docs, plot
from scripts.evaluate.forecast_scores import (
    Contest,
    Line,
    baseline_forecasts,
    intervals,
    open_contest,
    validation_skills,
)
from worker.forecast.baselines.fit import fit_baselines
from worker.forecast.baselines.table import BaselineTable, read_table, write_table
from worker.forecast.predict import TrainedModel, load_model, predict
from worker.training.tokens import Period, TokenStore, open_token_store, with_forecast


def log(message: str) -> None:
    """Write a message to stderr."""
    print(message, file=sys.stderr, flush=True)


def baselines(options: argparse.Namespace) -> int:
    """Fit the baselines and write their forecasts."""
    respondents = options.respondents.split(",") if options.respondents else respondents_on_disk(options.data)
    publication = Publication.parse(options.publication)
    store = open_token_store(options.data, with_forecast(options.data, respondents, log), "DF", log, publication)
    last = _last_year(store)
    test = Period.parse(options.test or str(last), "test")
    validate = Period.parse(options.validate or str(last - 1), "validate")
    neighbours = _neighbours(options.data, options.neighbours, publication)
    write_table(fit_baselines(store, validate, test, log, neighbours), options.out)
    return 0


def _neighbours(data_dir: Path, codes: str, publication: Publication) -> TokenStore | None:
    """Return the tokens of the authorities named, `all` for every one on disk; None where none is asked for."""
    if not codes:
        return None
    names = respondents_on_disk(data_dir) if codes == "all" else codes.split(",")
    return open_token_store(data_dir, with_forecast(data_dir, names, log), "DF", log, publication)


def run(options: argparse.Namespace) -> int:
    """Score and append lines."""
    table = read_table(options.baselines) if options.baselines else None
    trained = [load_model(path) for path in options.run]
    if table is None and not trained:
        raise SystemExit("nothing to score: name a finished training with --run, or baselines with --baselines")
    there = list(table.respondents) if table else list(trained[0].respondents)
    respondents = options.respondents.split(",") if options.respondents else there
    if missing := [name for name in respondents if name not in there]:
        raise SystemExit(f"{options.baselines or options.run[0]} lacks {', '.join(missing)}: write it again with them")
    averaged = tuple(respondents) if options.respondents else distinct(respondents)
    publication = table.publication if table else trained[0].publication
    if other := [
        str(path) for model, path in zip(trained, options.run, strict=True) if model.publication != publication
    ]:
        raise SystemExit(
            f"{', '.join(other)} knows other values than `{publication}`: write baselines with its --publication"
        )
    store = open_token_store(options.data, respondents, publication=publication)
    validate = table.validate if table else Period(*trained[0].state["validate"])
    period = table.test if table else Period.parse(str(_last_year(store)), "test")
    period = Period.parse(options.test, "test") if options.test else period
    if table and (period.first < table.test.first or period.last > table.test.last):
        raise SystemExit(f"{options.baselines} holds the test hours {table.test}, not all of {period}: write it again")
    contest = open_contest(store, respondents, period, validate, table, averaged)
    for line in _all_lines(contest, table, trained, options, period):
        append({"label": options.label, "period": str(period), "publication": str(publication), **line}, options.out)
        over = "; ".join(f"{x['skill']:+.3f} over {name} (p {x['p']:.1g})" for name, x in line["over"].items())
        log(f"{line['who']} {line['respondent']}: {over}")
    return 0


def _all_lines(
    contest: Contest,
    table: BaselineTable | None,
    trained: list[TrainedModel],
    options: argparse.Namespace,
    period: Period,
) -> Iterator[Line]:
    """Return the lines of the operators' forecast, the naive one, the baselines and every run."""
    yield from contest.lines("operators", contest.rivals["operators"], {})
    yield from contest.lines("weekly naive", {name: one.week for name, one in contest.actuals.items()}, {})
    respondents = list(contest.actuals)
    if table is not None:
        skills = validation_skills(table, respondents)
        for who, forecasts in baseline_forecasts(table, respondents, period).items():
            about = {
                name: {"validation_skill": skill, "choice": table.respondents[name].choices[who]}
                for name, skill in zip(respondents, skills[who], strict=True)
            }
            yield from contest.lines(who, forecasts, about)
    for model, path in zip(trained, options.run, strict=True):
        yield from _run_lines(contest, model, path, options.data, period)


def _run_lines(contest: Contest, trained: TrainedModel, path: Path, data_dir: Path, period: Period) -> Iterator[Line]:
    """Return the lines of a finished run."""
    if period.first <= trained.state["validate"][1]:
        raise SystemExit(
            f"{path} was validated on hours up to {Period(*trained.state['validate'])}: name a later --test"
        )
    if missing := [name for name in contest.actuals if name not in trained.respondents]:
        raise SystemExit(f"{path} was not trained on {', '.join(missing)}: write the baselines of its --respondents")
    store = trained.open_store(data_dir)
    forecasts = {name: predict(trained, store, name, period) for name in contest.actuals}
    config = trained.state["config"]
    common = {"run": path.name, **{key: config[key] for key in ("seed", "context", "reference")}}
    common |= {"best_step": trained.state["best_step"], "validation_skill": trained.state["best_skill"]}
    about = {name: {**common, **intervals(forecast)} for name, forecast in forecasts.items()}
    who = "forecaster" if trained.reference == "DF" else f"forecaster on {trained.reference}"
    yield from contest.lines(who, {name: one.median for name, one in forecasts.items()}, about)


def _last_year(store: TokenStore) -> int:
    """Return the last whole year that the first respondent has on disk."""
    there = store.period(0)
    return max(year for year in range(2000, 2101) if there.last >= Period.parse(str(year), "test").last)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 no usable lines or hours, 2 usage."""
    command_line = parser(__doc__)
    commands = command_line.add_subparsers(required=True)
    command = commands.add_parser("baselines", help="fit the baselines and write their forecasts")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--respondents", default="", help="codes, comma-separated; default: all on disk")
    command.add_argument(
        "--neighbours",
        default="",
        help="codes that the linear forecasts know, or `all` on disk; default: none (no linear forecasts)",
    )
    command.add_argument("--validate", default="", help="period that decides; default: the last whole year but one")
    command.add_argument("--test", default="", help="period; default: the last whole year on disk")
    command.add_argument(
        "--publication", default=str(DEFAULT), help="what is known: day-before, deadline, …; default: %(default)s"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    command.set_defaults(call=baselines)
    command = commands.add_parser("run", help="score and append JSON lines")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--run", type=Path, action="append", default=[], help="finished run folder; repeatable")
    command.add_argument("--baselines", type=Path, metavar="FILE.parquet", help="as `baselines` writes it")
    command.add_argument(
        "--respondents",
        default="",
        help="codes to score and to average; default: all, and the mean leaves out regions that hold another (TEX beside ERCO)",
    )
    command.add_argument("--test", default="", help="period; default: that of the baselines, else the last whole year")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--label", default="main", help="which comparison the lines belong to")
    command.set_defaults(call=run)
    command = commands.add_parser("plot", help="draw docs/images/forecast_*.png")
    command.add_argument("--in", dest="lines", type=Path, required=True)
    command.add_argument("--data", type=Path)
    command.add_argument("--run", type=Path)
    command.set_defaults(call=plot)
    command = commands.add_parser("docs", help="rewrite the generated sections of docs/reference/forecasting.md")
    command.add_argument("--in", dest="lines", type=Path, required=True)
    command.set_defaults(call=docs)
    options = command_line.parse_args(argv)
    try:
        return int(options.call(options))
    except IngestError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
