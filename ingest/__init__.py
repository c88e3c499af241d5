"""EIA-930 and CAISO hours: sources, raw store, manifests, series, verification, and an emulator of both APIs."""
