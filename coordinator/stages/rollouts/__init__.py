"""The rollouts stage: train a control policy on the workers."""
