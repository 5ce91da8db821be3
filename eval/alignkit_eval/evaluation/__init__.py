"""Evaluation of a run, a model directory or a hub id with suites."""
