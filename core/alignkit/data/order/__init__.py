"""The order of the training rows."""
