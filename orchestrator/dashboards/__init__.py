"""A Grafana dashboard of the metrics of runs, and what Prometheus and Grafana need to show it."""
