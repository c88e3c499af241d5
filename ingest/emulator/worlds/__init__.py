"""Data sources of the emulator: a synthetic grid and recorded hours."""
