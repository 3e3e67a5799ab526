"""Runs, finished or in progress, found and read without changing them."""
