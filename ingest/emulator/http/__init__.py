"""The emulator's HTTP server, its routes and its responses."""
