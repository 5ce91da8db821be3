"""Conformance tests of losses."""

from __future__ import annotations

from typing import Any

from alignkit.contract import registry
from alignkit.testing.methods import MethodConformance


class LossConformance(MethodConformance):
    """Tests of one installed loss of pairs, in the method that trains with it; set ``name`` and, if needed, ``settings``."""

    group = "align.losses"

    def _method(self) -> str:
        return "dpo" if "reference" in registry.load(self._entry()).needs else "cpo"

    def _load(self) -> Any:
        return registry.load_method(self._method())[1]

    def _settings(self, **needed: Any) -> dict[str, Any]:
        return {"loss": {self.name: {"weight": 1.0, **self.settings}}, "alpha": 0.0}
