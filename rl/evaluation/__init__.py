"""Scores and key performance indicators of policies."""
