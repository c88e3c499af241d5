"""The stages of a run: extract, train, rollouts."""
