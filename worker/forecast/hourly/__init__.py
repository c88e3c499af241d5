"""Forecasts issued at any hour for each of the next 48: medians, intervals and paths in closed form, fitted again each month."""
