"""Inverted indexes: `lexical` (BM25 over analysed text)."""
