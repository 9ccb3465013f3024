"""What a running service needs: batching, loading and reloading, telemetry, the selection log."""
