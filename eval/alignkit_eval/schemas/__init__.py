"""The JSON schemas of configuration and pipeline files, for editors: they accept what the loader accepts."""
