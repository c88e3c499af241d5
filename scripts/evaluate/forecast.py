"""Evaluate trained forecasters on test hours: `python -m scripts.evaluate.forecast run --data DIR --run RUN [--run RUN …] --out FILE.jsonl`.

  run    scores each run, the operators' forecast, the weekly naive one and (with scikit-learn) gradient boosting on the same tokens;
         one JSON line a forecaster and respondent. Choices are made on validation hours; test hours are only scored.
  plot   draws skill bars, the ablation's curve and (with --data and --run) fan charts of chosen days
  docs   rewrites the generated section of docs/reference/forecasting.md from the lines alone

The boosting baseline needs the group `bench-forecast`: `uv run --group bench-forecast python -m scripts.evaluate.forecast …`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.calendar import Calendar, calendar_of
from ingest.features import CONDITION, FEATURES
from scripts.bench.common import append, parser
from scripts.evaluate.forecast_report import docs, plot
from worker.forecast.model import scores
from worker.forecast.model.network import QUANTILES
from worker.forecast.predict import Forecast, TrainedModel, load_model, predict
from worker.training.tokens import Period, Piece, TokenStore, open_token_store

BOOSTING = [  # settings tried, the best on validation hours counts
    {"learning_rate": 0.05, "max_leaf_nodes": leaves, "min_samples_leaf": least, "l2_regularization": l2}
    for leaves, least, l2 in ((15, 100, 10.0), (31, 50, 1.0), (7, 200, 10.0))
]
ITERATIONS = (50, 100, 200, 400)


def judge(forecast: Forecast, calendar: Calendar, history: NDArray[np.float32]) -> dict[str, Any]:
    """Return all scores of one respondent. `history`: demand of the training hours, for MASE."""
    actual, median, q = forecast.demand, forecast.median, forecast.quantiles
    return {
        **points(actual, median, forecast.operator, calendar, history),
        "pinball": scores.pinball(actual, q, QUANTILES),
        "crps": scores.crps(actual, q, QUANTILES),
        "coverage_80": scores.coverage(actual, q[:, 1], q[:, -2]),
        "coverage_95": scores.coverage(actual, q[:, 0], q[:, -1]),
    }


def points(
    actual: NDArray[Any], point: NDArray[Any], operator: NDArray[Any], calendar: Calendar, history: NDArray[Any]
) -> dict[str, Any]:
    """Return the scores of a point forecast; the skill is over the operators' forecast, on hours that both forecast."""
    month = (calendar.day.astype("datetime64[D]").astype("datetime64[M]").astype(int)) % 12

    def skill(where: NDArray[np.bool_]) -> float:
        return scores.skill(actual[where], point[where], operator[where])

    return {
        "hours": int((np.isfinite(actual) & np.isfinite(point) & np.isfinite(operator)).sum()),
        "skill": skill(np.ones(len(actual), bool)),
        "mae": scores.mae(actual, point),
        "mape": scores.mape(actual, point),
        "peak_mape": scores.peak_mape(actual, point, calendar.day),
        "mase": scores.mase(actual, point, history),
        "skill_by_month": [skill(month == m) for m in range(12)],
        "skill_by_hour": [skill(calendar.hour == h) for h in range(24)],
    }


def score_run(trained: TrainedModel, store: TokenStore, name: str, period: Period) -> Iterator[dict[str, Any]]:
    """Return a line for each respondent."""
    config = trained.state["config"]
    train = Period(*trained.state["train"])
    about = {key: config[key] for key in ("seed", "context", "reference")} | {
        "best_step": trained.state["best_step"],
        "validation_skill": trained.state["best_skill"],
    }
    for respondent in trained.respondents:
        forecast = predict(trained, store, respondent, period)
        calendar = calendar_of(respondent, period.first, period.last)
        history = _column(store, trained.respondents.index(respondent), train, "demand")
        yield {
            "who": "forecaster",
            "run": name,
            **about,
            "respondent": respondent,
            **judge(forecast, calendar, history),
        }


def _column(store: TokenStore, region: int, period: Period, name: str) -> NDArray[np.float32]:
    columns = ("target", "reference", "scale", "demand", "operator")
    return _rows(store, region, period)[:, len(FEATURES) + len(CONDITION) + columns.index(name)]


def _rows(store: TokenStore, region: int, period: Period) -> NDArray[np.float32]:
    there = store.period(region)
    first, last = max(there.first, period.first), min(there.last, period.last)
    return store.rows(Piece(region, first, last - first + 1), slice(None))


def score_baselines(
    trained: TrainedModel, store: TokenStore, period: Period, *, boosting: bool
) -> Iterator[dict[str, Any]]:
    """Return a line for each respondent and baseline: the operators' forecast, the weekly naive one, gradient boosting."""
    train, validate = Period(*trained.state["train"]), Period(*trained.state["validate"])
    for region, respondent in enumerate(trained.respondents):
        calendar = calendar_of(respondent, period.first, period.last)
        history = _column(store, region, train, "demand")
        demand, operator = (_column(store, region, period, name) for name in ("demand", "operator"))
        week = _column(store, region, Period(period.first - 168, period.last - 168), "demand")
        contenders: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
            "operators": (operator, {}),
            "weekly naive": (week, {}),
        }
        if boosting:
            contenders["gradient boosting"] = _boost(store, region, train, validate, period)
        for who, (point, about) in contenders.items():
            yield {"who": who, "respondent": respondent, **about, **points(demand, point, operator, calendar, history)}


def _boost(
    store: TokenStore, region: int, train: Period, validate: Period, test: Period
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Fit boosted trees to a respondent's tokens; absolute error; settings and length are chosen on validation hours."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    width = len(FEATURES) + len(CONDITION)
    x, y, w = {}, {}, {}
    for name, period in (("train", train), ("validate", validate)):
        rows = _rows(store, region, period)
        rows = rows[np.isfinite(rows[:, width])]
        x[name], y[name], w[name] = rows[:, :width], rows[:, width], rows[:, width + 2]
    best: tuple[float, Any, dict[str, Any]] | None = None
    for setting in BOOSTING:
        model = HistGradientBoostingRegressor(loss="absolute_error", warm_start=True, early_stopping=False, **setting)
        for iterations in ITERATIONS:
            model.set_params(max_iter=iterations)
            model.fit(x["train"], y["train"])
            error = float((np.abs(y["validate"] - model.predict(x["validate"])) * w["validate"]).sum())
            if best is None or error < best[0]:
                rows = _rows(store, region, test)
                point = rows[:, width + 1] + model.predict(rows[:, :width]) * rows[:, width + 2]
                base = float((np.abs(y["validate"]) * w["validate"]).sum())
                best = (
                    error,
                    point,
                    {"setting": {**setting, "max_iter": iterations}, "validation_skill": 1 - error / base},
                )
    assert best is not None
    return best[1], best[2]


def run(options: argparse.Namespace) -> int:
    """Score and append lines."""

    def write(line: dict[str, Any]) -> None:
        append({"label": options.label, "period": str(period), **line}, options.out)
        print(
            f"{line['who']} {line['respondent']}: skill {line['skill']:+.3f}, MAPE {line['mape']:.2%}",
            file=sys.stderr,
        )

    for i, path in enumerate(options.run):
        trained = load_model(path)
        store = open_token_store(options.data, trained.respondents, trained.reference)
        years = range(2000, 2101)
        last = max(year for year in years if store.period(0).last >= _year(year).last)
        period = Period.parse(options.test, "test") if options.test else _year(last)
        if period.first <= trained.state["validate"][1]:
            raise SystemExit(
                f"{path} was validated on hours up to {Period(*trained.state['validate'])}: name a later --test"
            )
        for line in score_run(trained, store, path.name, period):
            write(line)
        if i == 0 and options.baselines:
            for line in score_baselines(trained, store, period, boosting=_has_sklearn()):
                write(line)
    return 0


def _year(year: int) -> Period:
    return Period.parse(str(year), "test")


def _has_sklearn() -> bool:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        print("gradient boosting is left out: scikit-learn is not installed (group bench-forecast)", file=sys.stderr)
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 no usable lines, 2 usage."""
    command_line = parser(__doc__)
    commands = command_line.add_subparsers(required=True)
    command = commands.add_parser("run", help="score and append JSON lines")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--run", type=Path, action="append", required=True, help="finished run folder; repeatable")
    command.add_argument("--test", default="", help="period; default: the last whole year on disk")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--label", default="main", help="which comparison the lines belong to")
    command.add_argument("--no-baselines", dest="baselines", action="store_false")
    command.set_defaults(call=run)
    command = commands.add_parser("plot", help="draw docs/images/forecast_*.png")
    command.add_argument("--in", dest="lines", type=Path, required=True)
    command.add_argument("--data", type=Path)
    command.add_argument("--run", type=Path)
    command.set_defaults(call=plot)
    command = commands.add_parser("docs", help="rewrite the generated section of docs/reference/forecasting.md")
    command.add_argument("--in", dest="lines", type=Path, required=True)
    command.set_defaults(call=docs)
    options = command_line.parse_args(argv)
    return int(options.call(options))


if __name__ == "__main__":
    sys.exit(main())
