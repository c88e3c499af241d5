"""Worker: registers with a coordinator, runs its leases, and returns verified results."""
