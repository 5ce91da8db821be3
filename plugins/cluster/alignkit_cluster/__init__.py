"""Runs on several processes and machines: the launcher of ``--processes`` and ``--nodes``, and Slurm."""

from __future__ import annotations

from alignkit import Command

SLURM = Command("alignkit_cluster.slurm:slurm", "Print a Slurm batch script for a configuration.")
