"""Helpers of the benchmarks and evaluations: machine description, JSON lines, generated sections of pages, plots."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS, IMAGES = ROOT / "docs" / "benchmarks", ROOT / "docs" / "images"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine_line(**more: object) -> dict[str, Any]:
    """Return a line that describes this machine: cores, platform, Python and date."""
    return {
        "event": "machine",
        "cores": cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **more,
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def emit(line: dict[str, Any], out: Path | None, *, progress: bool = False) -> dict[str, Any]:
    """Print a line to stdout, or to stderr as `progress`, append it to `out` if there is one, and return it."""
    print(json.dumps(line), file=sys.stderr if progress else sys.stdout, flush=True)
    return line if out is None else append(line, out)


def append(line: dict[str, Any], out: Path) -> dict[str, Any]:
    """Append a line to `out`, and return it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def run_json(command: Sequence[str], **options: Any) -> dict[str, Any]:
    """Run a program to its end and return the JSON object in the last line of its output.

    Raises:
        ValueError: The program failed or printed nothing; the message is the last line of its stderr.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode or not done.stdout.strip():
        raise ValueError((done.stderr.strip().splitlines() or [f"no output, exit code {done.returncode}"])[-1])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def rewrite_section(page: Path, begin: str, end: str, content: str) -> None:
    """Replace the text of a page between two marks."""
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}")


@contextmanager
def drawn(path: Path, columns: int = 1, size: tuple[float, float] = (7, 4), **options: Any) -> Iterator[Any]:
    """Yield the axes of a plot (a list if there are several `columns`); then add grid and legend, and write it as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained")
    yield axes
    for one in figure.axes:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend(**options)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
