"""Task scheduling as deterministic state machines without I/O: (state, event, now) → decision."""
