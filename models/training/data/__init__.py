"""Training data: groups of a query and its documents, click logs, Parquet files."""
