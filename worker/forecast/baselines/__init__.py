"""Simple models that a forecaster has to beat, on the same hours, tokens and issue times: running bias, ridge, LightGBM."""
