"""Mining of hard negatives from the live plan: pools with features, filters with named fates, files for training."""
