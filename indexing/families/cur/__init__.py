"""Family `cur`: retrieval by a cross-encoder itself, through a CUR decomposition of its score matrix."""
