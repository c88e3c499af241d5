"""Distributed training of the demand forecaster."""
