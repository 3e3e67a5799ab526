"""The evaluators, one module each: the expensive part of a search."""
