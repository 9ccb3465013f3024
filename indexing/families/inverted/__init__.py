"""Inverted indexes of impacts: `lexical` (BM25 over analysed text) and `sparse` (learned vectors)."""
