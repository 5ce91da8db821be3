"""Atomic files, locks, processes, environment and logging."""
