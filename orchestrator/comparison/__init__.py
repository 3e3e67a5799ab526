"""Runs compared: panels of methods, statistics, figures, tables and their page."""
