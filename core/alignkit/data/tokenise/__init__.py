"""tokenise."""
