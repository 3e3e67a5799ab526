"""Training networks on images: recipes, tasks and the one loop."""
