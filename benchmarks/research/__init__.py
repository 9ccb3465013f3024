"""Experiments that settled a decision once; what they found is in docs/experiments.md. They guard nothing."""
