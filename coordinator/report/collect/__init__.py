"""Read the files of a data folder into the report's model."""
