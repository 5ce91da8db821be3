"""One scorer for every method and for evaluation."""
