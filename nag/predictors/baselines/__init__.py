"""Surrogate predictors of published searches. They are not differentiable."""
