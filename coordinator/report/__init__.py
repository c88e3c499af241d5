"""`coordinator report`: one HTML page about the files that the runs left. Collect facts, then render charts and sections."""
