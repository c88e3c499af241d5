"""EIA's key-less six-month CSV files."""
