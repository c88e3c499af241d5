"""Backtests: retrain on a schedule, walk forward over past months, and write what would have been forecast."""
