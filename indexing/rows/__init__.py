"""Indexes of one vector a document: how rows are stored, merged, scanned and found by neighbour search."""
