"""Fan charts of forecasts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ingest.columns import hour_text
from worker.forecast.model.network import MEDIAN
from worker.forecast.predict import Forecast


def draw_fan_chart(forecasts: Sequence[Forecast], path: Path, origin: str) -> None:
    """Draw one chart a forecast to a PNG file: 80% and 95% intervals, median, the operators' forecast and the demand, GWh.

    Args:
        forecasts: what to draw.
        path: file to write.
        origin: of the series, for the titles.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(forecasts), 1, figsize=(9, 3.2 * len(forecasts)), squeeze=False, layout="constrained"
    )
    for axis, forecast in zip(axes[:, 0], forecasts, strict=True):
        x = forecast.hours.astype("datetime64[h]")
        q = forecast.quantiles / 1e3
        axis.fill_between(x, q[:, 0], q[:, -1], color="tab:blue", alpha=0.15, label="95% interval", linewidth=0)
        axis.fill_between(x, q[:, 1], q[:, -2], color="tab:blue", alpha=0.3, label="80% interval", linewidth=0)
        axis.plot(x, q[:, MEDIAN], color="tab:blue", label="median")
        axis.plot(x, forecast.operator / 1e3, color="tab:orange", linestyle="--", label="operators' forecast")
        if np.isfinite(forecast.demand).any():
            axis.plot(x, forecast.demand / 1e3, color="black", linewidth=1, label="demand")
        axis.set(
            ylabel="demand, GWh in the hour",
            title=f"{forecast.respondent}, from {hour_text(int(forecast.hours[0]))} UTC (data: {origin})",
        )
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)
