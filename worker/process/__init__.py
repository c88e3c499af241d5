"""Process entry points and process-wide settings: parent death, BLAS threads, probes."""
