"""The EIA v2 API: queries, pages, metadata."""
