"""Fan charts of forecasts."""

from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from ingest.zones import zone_of
from worker.forecast.answer import Answer
from worker.forecast.model.network import MEDIAN
from worker.forecast.predict import Forecast


def draw_fan_chart(forecasts: Sequence[Forecast | Answer], path: Path, origin: str) -> None:
    """Draw one chart a forecast to a PNG file: 80% and 95% intervals, paths, median, the operators' forecast and the demand, GWh.

    Args:
        forecasts: what to draw, each over the local time of its respondent.
        path: file to write.
        origin: of the series, for the titles.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure, axes = plt.subplots(
        len(forecasts), 1, figsize=(9, 3.2 * len(forecasts)), squeeze=False, layout="constrained"
    )
    for axis, forecast in zip(axes[:, 0], forecasts, strict=True):
        x = forecast.hours.astype("datetime64[h]")
        zone = zone_of(forecast.respondent)
        issued = f", issued {forecast.issue} local" if isinstance(forecast, Answer) else ""
        q = forecast.quantiles / 1e3
        axis.fill_between(x, q[:, 0], q[:, -1], color="tab:blue", alpha=0.15, label="95% interval", linewidth=0)
        axis.fill_between(x, q[:, 1], q[:, -2], color="tab:blue", alpha=0.3, label="80% interval", linewidth=0)
        if isinstance(forecast, Answer) and forecast.paths.size:
            paths = axis.plot(x, forecast.paths / 1e3, color="tab:gray", linewidth=0.5, alpha=0.6)
            paths[0].set_label("paths")
        axis.plot(x, q[:, MEDIAN], color="tab:blue", label="median")
        if np.isfinite(forecast.operator).any():
            axis.plot(x, forecast.operator / 1e3, color="tab:orange", linestyle="--", label="operators' forecast")
        if np.isfinite(forecast.demand).any():
            axis.plot(x, forecast.demand / 1e3, color="black", linewidth=1, label="demand")
        axis.set(
            ylabel="demand, GWh in the hour",
            xlabel=f"end of the hour, local time ({zone})",
            title=f"{forecast.respondent}{issued} (data: {origin})",
        )
        locator = AutoDateLocator(tz=ZoneInfo(zone))
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=ZoneInfo(zone)))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    figure.savefig(path, dpi=120)
    plt.close(figure)
