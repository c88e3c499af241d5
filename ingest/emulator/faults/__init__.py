"""Faults by plan, and their injection into responses."""
