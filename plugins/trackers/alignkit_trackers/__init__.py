"""TensorBoard, Weights & Biases, MLflow, trackio and aim: services that ``train.report_to`` names."""

from __future__ import annotations

from alignkit_trackers.tracker import Tracked, Tracker

__all__ = ["Tracked", "Tracker"]
