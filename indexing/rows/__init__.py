"""Indexes of one vector per document: storage, merging, scans and approximate neighbour search of rows."""
