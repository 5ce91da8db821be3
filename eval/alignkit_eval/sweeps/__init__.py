"""Sweeps over a grid of settings and seeds, with scheduling and resume."""
