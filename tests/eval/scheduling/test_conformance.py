"""The built-in schedulers pass the conformance tests that third parties run."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from alignkit.testing import SchedulerConformance


class TestLocal(SchedulerConformance):
    name = "local"
    settings = {"jobs": 2}


class TestRay(SchedulerConformance):
    name = "ray"
    settings: ClassVar[dict[str, Any]] = {"retries": 0}

    @pytest.fixture(autouse=True)
    def _cluster(self, ray_cluster: Any) -> None:
        self.settings["address"] = ray_cluster.address


class TestSlurm(SchedulerConformance):
    name = "slurm"
    settings = {"cluster": "local", "retries": 0}
