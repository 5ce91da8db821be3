"""Console output, the model card and the status of a run."""
