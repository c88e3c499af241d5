"""A server that responds as EIA API v2 and CAISO OASIS do, for tests and for a default without key or network."""
