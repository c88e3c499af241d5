"""EIA-930 and CAISO hours: sources, raw store, proofs, series, and an emulator of both APIs."""
