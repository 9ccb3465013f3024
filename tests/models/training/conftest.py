"""Fixtures of the training tests."""

from support_training import backbone, multimodal, recipe_of

__all__ = ["backbone", "multimodal", "recipe_of"]
