"""Console output, training curves, the model card and the status of a run."""
