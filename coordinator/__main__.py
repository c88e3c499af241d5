"""`python -m coordinator`: the same as the console script `coordinator`."""

from coordinator.cli import main

main()
