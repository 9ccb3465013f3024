"""Encoders: texts to dense, token and sparse vectors."""
