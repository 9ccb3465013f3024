"""A collection on disk, opened: snapshots, segments, document tables, filters."""
