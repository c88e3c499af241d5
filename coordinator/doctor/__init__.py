"""Health checks of this host and of every host in a hostfile."""
