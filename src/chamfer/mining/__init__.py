"""Hard negatives from the live plan: candidates with their features, filters that say why, files that the jobs read."""
