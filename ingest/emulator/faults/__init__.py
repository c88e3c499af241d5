"""Fault plans, and the injection of faults into responses."""
