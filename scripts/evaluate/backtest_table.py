"""Tables of judged backtests: `python -m scripts.evaluate.backtest_table --in "NAME=FILE.json" [--in …] [--write]`.

Each file is what `coordinator judge TABLE --json` prints. Prints Markdown: a line a file with the means over its respondents, then a line a
respondent of the last file. `--write` puts them on docs/reference/forecasting.md.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.common import ROOT, markdown_table, parser, rewrite_section

DOCS = ROOT / "docs" / "reference" / "forecasting.md"
BEGIN, END = "<!-- backtests: begin (scripts/evaluate/backtest_table.py) -->", "<!-- backtests: end -->"
WITHIN = (0.75, 0.85)  # of the 80% interval in a month
FEWEST = 168  # hours of a month; one of fewer does not count
INTERVAL = "80%"
Line = dict[str, Any]


def months_of(line: Line) -> list[float]:
    """Return what the 80% interval covers in each local month of a respondent that has at least a week of hours."""
    months = line["parts"]["month"].values()
    return [one["coverage"][INTERVAL] for one in months if one["hours"] >= FEWEST]


def _within(shares: Sequence[float]) -> str:
    return f"{sum(WITHIN[0] <= share <= WITHIN[1] for share in shares)} of {len(shares)}"


def _means(name: str, verdict: Line, rivals: Sequence[str]) -> list[str]:
    """Return the row of a file: mean skill over each rival, and of how many respondents it is positive with p < 0.01."""
    lines = [verdict["respondents"][code] for code in verdict["mean"]["respondents"]]
    over = verdict["mean"]["over"]
    cells = [
        f"{over[rival]['skill']:+.3f}, {over[rival]['better']} of {over[rival]['of']}" if rival in over else "–"
        for rival in rivals
    ]
    covered = sum(line["coverage"][INTERVAL] for line in lines) / len(lines)
    return [
        f"{len(lines)} {name}",
        *cells,
        f"{covered:.1%}",
        _within([share for line in lines for share in months_of(line)]),
    ]


def _respondent(code: str, line: Line, rivals: Sequence[str]) -> list[str]:
    over = line["over"]
    cells = [f"{over[rival]['skill']:+.3f} ({_p(over[rival]['p'])})" if rival in over else "–" for rival in rivals]
    return [
        code,
        *cells,
        f"{line['mae']:,.0f}",
        f"{line['crps']:,.0f}",
        f"{line['coverage'][INTERVAL]:.1%}",
        _within(months_of(line)),
    ]


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p {p:.4f}" if p < 0.01 else f"p {p:.2f}"


def report(verdicts: dict[str, Line]) -> str:
    """Return the tables of judged files, by name."""
    last = list(verdicts.values())[-1]
    rivals = list(dict.fromkeys(name for verdict in verdicts.values() for name in verdict["mean"]["over"]))
    skills = [f"over {name}" for name in rivals]
    ends = [f"{INTERVAL} covers", f"months within {WITHIN[0]:.0%} to {WITHIN[1]:.0%}"]
    return "\n\n".join(
        [
            f"Rows {last['period'][0]} to {last['period'][1]} (UTC). Skill over each rival, and in how many respondents it is positive with p < 0.01:",
            markdown_table(["mean of", *skills, *ends], [_means(name, one, rivals) for name, one in verdicts.items()]),
            f"The {list(verdicts)[-1]}, one by one:",
            markdown_table(
                ["", *skills, "MAE, MWh", "CRPS, MWh", *ends],
                [_respondent(code, line, rivals) for code, line in last["respondents"].items()],
            ),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    command_line = parser(__doc__)
    command_line.add_argument("--in", dest="files", action="append", required=True, metavar="NAME=FILE.json")
    command_line.add_argument("--write", action="store_true", help="also write docs/reference/forecasting.md")
    options = command_line.parse_args(argv)
    named = [text.partition("=") for text in options.files]
    if unnamed := [text for text, equals, _ in named if not equals]:
        raise SystemExit(f"--in {unnamed[0]} has no name; write NAME=FILE.json, e.g. authorities=judged.json")
    text = report({name: json.loads(Path(path).read_text()) for name, _, path in named})
    print(text)
    if options.write:
        rewrite_section(DOCS, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
