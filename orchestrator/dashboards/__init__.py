"""A Grafana dashboard for the metrics of runs, and the Prometheus and Grafana setup to show it."""
