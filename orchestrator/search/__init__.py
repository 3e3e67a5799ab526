"""A search: what it evaluates next, what it keeps, and the loop between."""
