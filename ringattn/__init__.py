"""Ring attention for MLX: exact attention over a sequence that is spread across hosts."""
