"""Network parts shared by encoders, rerankers and training."""
