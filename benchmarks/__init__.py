"""Programs that measure, one a subject. Each prints rows; with --json a list of {what, value, unit, peer, ratio}."""
