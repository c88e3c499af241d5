"""Start and watch worker processes, locally and over SSH."""
