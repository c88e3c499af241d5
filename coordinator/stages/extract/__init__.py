"""The extract stage: download hours, verify them, build series."""
