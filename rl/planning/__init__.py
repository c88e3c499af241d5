"""Planners: the exact optimum, model predictive control, rule-based baselines."""
