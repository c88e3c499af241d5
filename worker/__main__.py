"""`python -m worker`: the same as the command `worker`."""

from worker.cli import main

main()
