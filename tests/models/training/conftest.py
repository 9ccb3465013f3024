"""Fixtures of the training tests."""

from support_training import backbone, recipe_of, seeing

__all__ = ["backbone", "recipe_of", "seeing"]
