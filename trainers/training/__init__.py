"""Training networks on images: recipes, tasks and the training loop."""
