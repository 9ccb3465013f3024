"""Searching without HTTP: plans, the pipeline and its stages."""
