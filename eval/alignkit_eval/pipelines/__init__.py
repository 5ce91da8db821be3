"""Pipelines: training, evaluation and export stages that run one after another and can be resumed."""
