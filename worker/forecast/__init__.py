"""Forecasts from a trained checkpoint."""
