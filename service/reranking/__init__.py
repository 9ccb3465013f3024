"""Reranking requests: pairs of many callers scored together."""
