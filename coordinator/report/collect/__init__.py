"""Read what the runs left in a data folder into the report's model."""
