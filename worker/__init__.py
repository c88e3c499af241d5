"""Worker agent: takes leases from the coordinator, executes them, and returns proved results."""
