"""Entry points of processes and process-wide settings: parent death, watchdog, BLAS threads, compute probe."""
