#!/usr/bin/env python3
"""Run the whole extraction and report counted figures: `uv run scripts/dev/run_full_extraction_monitored.py [--test]`.

For users of the earlier tool: the same report (period, mode, estimated time; then files, records, duration, rows per second,
share of the API's policy ceiling). Every figure is counted except the estimated time, which is labelled as an estimate.
`--test`: January 2024 only. Any option of `coordinator start` may follow, e.g. `--source eia --data real`.
"""

import json
import subprocess
import sys

CEILING_ROWS_PER_S = 12_500  # EIA's policy: 2.5 requests a second sustained, 5,000 rows each
TEST_PERIOD = ["--start", "2024-01", "--end", "2024-01"]


def coordinator(*arguments: str) -> tuple[dict, int]:
    """Run `coordinator` with `--json` and return its result and exit code. Its progress stays on the terminal."""
    command = [sys.executable, "-m", "coordinator", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        sys.exit(done.returncode)
    return json.loads(done.stdout), done.returncode


def main() -> int:
    """Run the extraction and print the report."""
    options = sys.argv[1:]
    test = "--test" in options
    options = [option for option in options if option != "--test"] + (TEST_PERIOD if test else [])
    plan, _ = coordinator("start", "--extract", "--dry-run", *options)
    print(f"Period          {plan['start']} to {plan['end']} (UTC, hour-ending)")
    print(f"Mode            {'test' if test else 'full'}, source {plan['source']}")
    print(
        f"Estimated time  at least {plan['policy_seconds']:.0f} s at EIA's policy ceiling ({plan['requests']} requests planned)"
    )
    summary, code = coordinator("start", "--extract", *options)
    rate = summary["new_rows"] / summary["seconds"] if summary["seconds"] else 0.0
    print(f"Files created   {summary['new_files']}")
    print(f"Records         {summary['new_rows']:,} verified in this run; {summary['rows']:,} in the data folder")
    print(f"Duration        {summary['seconds']:.1f} s")
    print(f"Rows per second {rate:,.0f}")
    print(
        f"API ceiling     {100 * rate / CEILING_ROWS_PER_S:.0f}% of {CEILING_ROWS_PER_S:,} rows/s (data: {', '.join(summary['origins'])})"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
