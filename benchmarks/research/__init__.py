"""Experiments that each settled one decision; docs/experiments.md has the results. They guard no property."""
