"""Rendering and tokenising of rows."""
