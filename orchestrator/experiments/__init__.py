"""Experiments: files expanded into jobs, the jobs, and the view of their progress."""
