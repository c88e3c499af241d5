"""The server: sockets, authentication, journal and uploaded files."""
