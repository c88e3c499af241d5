"""Training and evaluation of control policies with jobs that workers run."""
