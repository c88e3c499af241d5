"""Score anyone's forecasts of demand, and find those that use hours after their cutoff: `coordinator judge`."""
