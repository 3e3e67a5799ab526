"""Surrogate predictors of published search methods. They are not differentiable."""
