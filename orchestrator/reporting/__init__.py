"""What is shown of one run: its progress, its figures and its report."""
