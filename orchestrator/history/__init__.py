"""Runs, finished or going on, found and read without touching them."""
