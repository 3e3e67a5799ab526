"""Experiments: files expanded into jobs, the jobs, and what is seen of them."""
