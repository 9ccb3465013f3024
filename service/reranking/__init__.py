"""Rerank requests: the pairs of many callers scored together."""
