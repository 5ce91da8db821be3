"""Per-token log-probabilities of completions: one scorer for every method and for evaluation."""
