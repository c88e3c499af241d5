"""The picture of a training run: loss and validation skill against steps, from its metrics.jsonl alone."""

from __future__ import annotations

import json
from pathlib import Path


def draw_training(run_dir: Path) -> Path:
    """Write `run_dir/loss.png` and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    skills = [line for line in lines if "skill" in line]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    top.plot([line["step"] for line in losses], [line["loss"] for line in losses], color="tab:blue", linewidth=1)
    top.set(ylabel="training loss (pinball, in scales)", title=f"Training run {run_dir.name}")
    for name in skills[0]["skills"] if skills else ():
        bottom.plot(
            [line["step"] for line in skills], [line["skills"][name] for line in skills], marker=".", label=name
        )
    bottom.plot([line["step"] for line in skills], [line["skill"] for line in skills], color="black", label="mean")
    bottom.axhline(0, color="grey", linewidth=0.8)
    bottom.set(xlabel="step", ylabel="validation MAE skill over the reference")
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    path = run_dir / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
