"""A search: what it evaluates next, what it stores, and the loop between them."""
