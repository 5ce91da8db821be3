"""The training loop: a transformers.Trainer whose loss is a list of terms, with its session, checkpoints and callbacks."""
