"""onpolicy."""
