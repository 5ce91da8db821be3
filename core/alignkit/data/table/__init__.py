"""Tables of tokenised rows: cache, selection, split and report."""
