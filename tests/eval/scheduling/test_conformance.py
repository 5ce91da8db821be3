"""The built-in schedulers pass the conformance tests that third parties run; Ray: test_lost.py."""

from __future__ import annotations

from alignkit.testing import SchedulerConformance


class TestLocal(SchedulerConformance):
    name = "local"
    settings = {"jobs": 2}


class TestSlurm(SchedulerConformance):
    name = "slurm"
    settings = {"cluster": "local", "retries": 0}
