"""Console output and the status of a run."""
