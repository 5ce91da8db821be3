"""Evaluation suites inside a run: looked up by name, given the held-out data, their results kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from alignkit.config import DataConfig, EvalConfig, ModelConfig
from alignkit.contract import Policy, RowKind, RunPolicy, Suite, SuiteResult, Target, registry
from alignkit.contract.checks import check_result
from alignkit.contract.guard import loading, running
from alignkit.data.load import HeldOut
from alignkit.data.table.cache import tokenizer_content
from alignkit.errors import NoRowsError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.scoring.evaluating import drawn_alike
from alignkit.scoring.ranks import share
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate
from alignkit.system.cache import ContentCache
from alignkit.system.code import code_of
from alignkit.system.environment import versions
from alignkit.system.files import digest
from alignkit.system.together import together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CACHE = ContentCache("evaluation")


def open_suites(config: EvalConfig, watched: str | None = None) -> dict[str, Suite[Any]]:
    """Load every suite of the configuration, those run during training among them, and ``watched``, with its settings.

    Raises for an unknown suite, key or value, also in the settings of a suite that is left out.
    """
    suites = {}
    place = Layer({"eval": {"settings": config.settings}}, default_place="RunConfig")
    wanted = dict.fromkeys([*config.suites, *config.during, *([watched] if watched else [])])
    for name in [*wanted, *(name for name in config.settings if name not in wanted)]:
        entry, suite_type = registry.load_suite(name)
        values = validate(suite_type.settings_type, config.settings.get(name, {}), place, ("eval", "settings", name))
        if name in wanted:
            with loading(f"{entry} cannot be set up"):
                suites[name] = suite_type(values)
    return suites


@dataclass(frozen=True)
class Subject:
    """A model to evaluate and its held-out data, from which a :class:`Target` is made."""

    name: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    held_out: HeldOut
    weights: str
    """Fingerprint of the model."""
    rules: Mapping[str, Any]
    """Keys of the data section that determine tokenisation."""
    scored_by: str
    """What rounding depends on, see :func:`scored_by`: ``cpu auto auto float32``."""
    start_weights: str | None = None
    """Fingerprint of the start model, where the subject came from a run."""
    start_policy: Callable[[], Policy] | None = None


def data_rules(config: DataConfig) -> dict[str, Any]:
    """Return the keys of the data section that decide how a row becomes tokens."""
    rules = {"columns", "max_length", "max_prompt_length", "max_completion_length", "append_eos"}
    return config.model_dump(mode="json", include=rules, exclude_none=True)


def scored_by(policy: RunPolicy, model: ModelConfig) -> str:
    """Return the type of the device, scorer and attention as configured, and the type of the products."""
    device, products = next(policy.model.parameters()).device.type, policy.precision.get("products", "")
    if engine := getattr(policy, "name", None):
        return f"{engine} {products}"
    return f"{device} {model.scorer} {model.attention} {products}"


def run_suites(
    suites: Mapping[str, Suite[Any]],
    subject: Subject,
    *,
    start: Mapping[str, SuiteResult] | None = None,
    skipped: Callable[[str], None] = lambda message: None,
) -> dict[str, SuiteResult]:
    """Run every suite on a model, or take its result from the cache where the same was evaluated before.

    Every process calls this; what the model does is shared out among them, and all of them return the same. A suite whose
    rows the held-out data cannot give is skipped and says so. Raises
    :class:`~alignkit.errors.RunFailedError` from a suite whose scores are not finite.
    """
    results = {}
    for name, suite in suites.items():
        try:
            results[name] = together(f"suite {name}", partial(_run_suite, suite, subject, (start or {}).get(name)))
        except NoRowsError as error:
            skipped(f"suite {name} is skipped: {error}")
    return results


def _run_suite(suite: Suite[Any], subject: Subject, start: SuiteResult | None) -> SuiteResult:
    started = time.process_time()
    if getattr(subject.policy, "classifier", False) and not suite.classifiers:
        raise NoRowsError(f"{subject.name} is a reward model, and the suite needs a language model")
    used, load_start = subject.held_out.unused(), subject.start_policy
    target = Target(
        name=subject.name,
        policy=share(subject.policy),
        tokenizer=subject.tokenizer,
        examples=used.examples,
        rows=used.rows,
        start=start if suite.uses_start else None,
        start_policy=None if load_start is None else lambda: share(load_start()),
        whole=used.whole,
    )
    failed = f"{registry.find('align.suites', suite.name)} failed"
    with running(failed):
        content = suite.content(target)
    identity = _identity(suite, subject, content, used.used, with_start=target.start is not None)
    key = digest([identity, used.left_out()])

    def make() -> SuiteResult:
        with running(failed), drawn_alike():
            result = check_result(suite.evaluate(target), f"suite {suite.name}: evaluate")
        provenance = {**identity, "cpu_seconds": time.process_time() - started}
        return replace(result, left_out=[*used.left_out(), *result.left_out], provenance=provenance)

    if content is None or not suite.cacheable:
        result, cached = make(), False
    else:
        result, cached = _CACHE.fetch_together(
            key,
            make,
            read=lambda path: read_evaluation(path, suite.name),
            write=lambda path, made: write_evaluation(path, made(), target=subject.name),
        )
    return replace(result, provenance={**result.provenance, "cached": cached})


def _identity(
    suite: Suite[Any], subject: Subject, content: str | None, kinds: Iterable[RowKind], *, with_start: bool
) -> dict[str, Any]:
    """Return everything a result depends on; a result is never known by a name."""
    entry = registry.find("align.suites", suite.name)
    return {
        "plugin": f"{entry.distribution} {entry.version} {code_of(type(suite).__module__)}",
        "versions": versions(),
        "settings": suite.settings.model_dump(mode="json"),
        "content": content,
        "rows": {kind: subject.held_out.examples(kind).digest() for kind in sorted(kinds)},
        "weights": subject.weights,
        "scored_by": subject.scored_by,
        "tokenizer": digest(tokenizer_content(subject.tokenizer)),
        "rules": dict(subject.rules),
        "start_weights": subject.start_weights if suite.uses_start else None,
        "against_start": with_start,
    }
