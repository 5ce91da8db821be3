"""Paired comparison of runs: loading, pairing of items, contrasts and verdicts."""
