"""Worker process: registration, heartbeats, leases, file transfer, and the client side of the rate limiter."""
