"""The worker process: registers with the coordinator and executes leases."""
