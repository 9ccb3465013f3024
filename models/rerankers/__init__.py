"""Rerankers: scores of (query, document) pairs and lists."""
