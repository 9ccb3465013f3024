"""From a corpus to a collection: reading, encoding by block, codec training, the recall floor, updates."""
