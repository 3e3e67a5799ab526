"""The evaluators, one file each: what a search pays for."""
