"""Data sources of the emulator: a synthetic grid, recorded hours."""
