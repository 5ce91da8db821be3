"""Evaluation suites inside a run: looked up by name, given the held-out data, their results kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.config import EvalConfig
from alignkit.errors import DataError
from alignkit.types import Example, RowKind, Suite, SuiteResult, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.types import Policy


def open_suites(config: EvalConfig) -> dict[str, Suite[Any]]:
    """Load every suite of the configuration with its settings; raises for an unknown suite, key or value."""
    from alignkit import registry
    from alignkit.settings.layers import Layer
    from alignkit.settings.problems import validate

    suites = {}
    for name in dict.fromkeys(config.suites):
        _, suite_type = registry.load_suite(name)
        place = Layer({"eval": {"settings": config.settings}}, default_place="RunConfig")
        values = config.settings.get(name, {})
        suites[name] = suite_type(validate(suite_type.settings_type, values, place, ("eval", "settings", name)))
    for name in config.settings:
        registry.find(
            "align.suites", name
        )  # settings of a suite that is left out are fine, of one that does not exist not
    return suites


def run_suites(
    suites: Mapping[str, Suite[Any]],
    *,
    target: str,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    examples: Callable[[RowKind], Sequence[Example]],
    start: Mapping[str, SuiteResult] | None = None,
    skipped: Callable[[str], None] = lambda message: None,
) -> dict[str, SuiteResult]:
    """Run every suite on a policy. A suite whose rows the held-out data cannot give is skipped and says so.

    Raises :class:`~alignkit.errors.RunFailedError` from a suite whose scores are not finite.
    """
    results = {}
    for name, suite in suites.items():
        view = Target(target, policy, tokenizer, examples, (start or {}).get(name))
        try:
            results[name] = suite.evaluate(view)
        except DataError as error:
            skipped(f"suite {name} is skipped: {error}")
    return results
