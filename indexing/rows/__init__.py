"""Indexes of one vector a document: how rows are stored, scanned and found by neighbour search."""
