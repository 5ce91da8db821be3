"""Leaderboards over all runs of a directory."""
