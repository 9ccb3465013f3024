"""A search without the web: plans, the pipeline and its stages."""
