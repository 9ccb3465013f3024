"""The networks that training and inference share: transformer, heads, pooling, chat models, checkpoints."""
