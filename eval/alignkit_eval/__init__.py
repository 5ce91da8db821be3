"""The shared evaluation harness: suites, statistics, comparison, sweeps, report.

from alignkit_eval import evaluate, compare, sweep
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_eval.comparison.compare import compare as compare
    from alignkit_eval.comparison.result import Comparison as Comparison
    from alignkit_eval.evaluation.evaluate import Evaluation as Evaluation
    from alignkit_eval.evaluation.evaluate import evaluate as evaluate
    from alignkit_eval.sweeps.sweep import Sweep as Sweep
    from alignkit_eval.sweeps.sweep import sweep as sweep

# Name -> module. Loaded when first asked for: listing suites must cost nothing.
_PUBLIC = {
    "compare": "comparison.compare",
    "Comparison": "comparison.result",
    "Evaluation": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "Sweep": "sweeps.sweep",
    "sweep": "sweeps.sweep",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"alignkit_eval.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'alignkit_eval' has no attribute {name!r}")
