"""What a running service needs: batching, loading and reloading of collections, telemetry, the selection log."""
