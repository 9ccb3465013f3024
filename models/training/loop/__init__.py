"""The training loop and what all jobs share."""
