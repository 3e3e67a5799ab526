"""How a single run is shown: its progress, its figures and its report."""
