"""The grid environment: physics, regions, forecasts, datasets."""
