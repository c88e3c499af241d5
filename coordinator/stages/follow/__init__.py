"""Follow mode: keep a data folder up to date, cycle after cycle, until it is told to stop."""
