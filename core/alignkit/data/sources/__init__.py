"""Data sources and file formats."""
