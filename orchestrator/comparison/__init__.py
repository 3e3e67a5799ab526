"""Comparison of runs: panels of methods, statistics, figures, tables and their page."""
