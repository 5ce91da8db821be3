"""What finding the best model, and early stopping, ask of a configuration."""

from __future__ import annotations

from typing import Any

from alignkit import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError


def best_settings(config: RunConfig) -> tuple[str | None, dict[str, Any]]:
    """Return the suite whose metric chooses the best model, and the arguments that it and early stopping need.

    Those are evaluations, and checkpoints at the same steps; empty where no best model is looked for.

    Raises ``ConfigError`` for keys that contradict each other.
    """
    train, given, watched = config.train, config.train.arguments, _watched_suite(config)
    stops = train.stop_on is not None or train.early_stopping_patience is not None
    if not (stops or given.get("load_best_model_at_end") or given.get("save_strategy") == "best"):
        return watched, {}
    metric = given.get("metric_for_best_model") or train.stop_on or "loss"
    if train.stop_on not in (None, metric):
        raise ConfigError(f"train.stop_on ({train.stop_on}) and train.metric_for_best_model ({metric}) differ: set one")
    saves = given.get("save_strategy")
    strategy = given.get("eval_strategy") or (saves if saves in ("steps", "epoch") else "steps")
    if strategy == "no":
        raise ConfigError("train.eval_strategy is no, but the best model is found by evaluations: use steps or epoch")
    if saves not in (None, strategy, "best") and given.get("load_best_model_at_end", True):
        raise ConfigError(f"train.save_strategy ({saves}) must equal train.eval_strategy ({strategy}), or be best")
    every = given.get("eval_steps") or config.eval.during.get(watched or "") or given.get("save_steps")
    every = every or 0.1  # ten times a run
    return watched, {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "eval_steps": every,
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": not metric.removeprefix("eval_").startswith("loss"),  # loss, loss/nll
    }


def _watched_suite(config: RunConfig) -> str | None:
    """Return the suite whose metric chooses the best model; None: a held-out metric does, or nothing.

    Raises ``PluginError`` for a suite that is not installed.
    """
    metric = config.train.stop_on or config.train.arguments.get("metric_for_best_model") or ""
    suite, slash, _ = metric.removeprefix("eval_").partition("/")
    if not slash:
        return None
    if metric.startswith("eval_") or config.train.stop_on is None:  # eval_rewards/margins, also without eval_
        return suite if any(entry.name == suite for entry in registry.entries("align.suites")) else None
    registry.find("align.suites", suite)
    return suite
