"""Learning algorithms behind one `Algorithm` interface."""
