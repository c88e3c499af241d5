"""The live page: read what runs leave in a data folder, and serve it over HTTP to browsers and to Prometheus."""
