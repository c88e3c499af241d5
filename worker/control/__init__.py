"""Training and evaluation of control policies."""
