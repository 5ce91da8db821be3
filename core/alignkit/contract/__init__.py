"""What plugins implement and are given: hooks, methods, suites, rewards, rows, batches and scores, with their checks."""
