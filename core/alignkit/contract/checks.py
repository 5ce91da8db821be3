"""Validate plugins: hook implementations once, hook results on every call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from alignkit.contract.batch import COUNTS, Batch
from alignkit.contract.guard import loading
from alignkit.contract.hooks import EXCLUSIVE, PROJECT, AlignSpecs
from alignkit.contract.registry import PluginEntry
from alignkit.contract.rows import RawRows
from alignkit.contract.suites import Estimate, SuiteResult
from alignkit.contract.types import LossOutput
from alignkit.errors import PluginError, suggest


class Implementation(NamedTuple):
    """One hook implementation of a plugin, before pluggy sees it."""

    hook: str
    function: Any
    wraps: bool
    optional: bool


def hook_names() -> list[str]:
    return [name for name in vars(AlignSpecs) if name.startswith(f"{PROJECT}_")]


def hook_arguments(hook: str) -> list[str]:
    return [name for name in inspect.signature(getattr(AlignSpecs, hook)).parameters if name != "self"]


def implementations(plugin: object) -> Iterator[Implementation]:
    """Yield the functions of ``plugin`` that are marked with ``@hookimpl``."""
    for name in dir(plugin):
        if isinstance(inspect.getattr_static(plugin, name, None), property):
            continue  # not a hook, and its value may not be available yet
        function = getattr(plugin, name)
        marks = getattr(function, f"{PROJECT}_impl", None) if inspect.isroutine(function) else None
        if isinstance(marks, dict):
            wraps = bool(marks.get("wrapper") or marks.get("hookwrapper"))
            yield Implementation(marks.get("specname") or name, function, wraps, bool(marks.get("optionalhook")))


def check_method(entry: PluginEntry, method: object) -> None:
    """Raise :class:`PluginError` if a method's hooks are invalid or it has no hook to train with."""
    if not check_hooks(entry, method) & {"align_compute_loss", "align_build_trainer"}:
        raise PluginError(f"{entry} implements neither align_compute_loss nor align_build_trainer: it cannot train")


def check_service(entry: PluginEntry, service: object, method: PluginEntry) -> None:
    """Raise :class:`PluginError` if a service's hooks are invalid or would replace the method's."""
    if taken := check_hooks(entry, service) & EXCLUSIVE:
        raise PluginError(
            f"{entry} implements {min(taken)}, which belongs to {method}: it may only wrap it (hookimpl(wrapper=True))"
        )


def check_hooks(entry: PluginEntry, plugin: object) -> set[str]:
    """Check every hook implementation of a plugin; return the hooks it implements, without those it only wraps."""
    with loading(f"{entry} cannot be inspected"):
        found = list(implementations(plugin))
    if not found:
        raise PluginError(f"{entry} implements no hook: mark its functions with @alignkit.hookimpl")
    for implementation in found:
        _check_implementation(entry, implementation)
    return {implementation.hook for implementation in found if not implementation.wraps}


def _check_implementation(entry: PluginEntry, implementation: Implementation) -> None:
    hook = implementation.hook
    if hook not in hook_names():
        if implementation.optional:
            return
        raise PluginError(f'{entry} implements "{hook}", which is not a hook{suggest(hook, hook_names())}')
    known = hook_arguments(hook)
    for name, parameter in inspect.signature(implementation.function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(
                f"{entry}: {hook} takes its arguments by position and name, without * or ** (known: {', '.join(known)})"
            )
        if parameter.default is not parameter.empty:
            raise PluginError(
                f'{entry}: {hook} gives its argument "{name}" a default, so it would never be passed: remove the default'
            )
        if name not in known:
            raise PluginError(
                f'{entry}: {hook} has no argument "{name}"{suggest(name, known)} (known: {", ".join(known)})'
            )


# ------------------------------------------------------------------------------------------------- results


def check_batch(result: object, method: str | None) -> Batch:
    """Return the result of ``align_prepare_batch``.

    Raises:
        PluginError: it is not a batch, or a column or count does not have one value per row.
    """
    where = f"{method}: align_prepare_batch"
    if not isinstance(result, Batch):
        raise PluginError(f"{where} must return an alignkit.Batch or None, not {type(result).__name__}")
    for name, values in {**result.columns, **result.row_counts}.items():
        if len(values) != len(result):
            raise PluginError(f'{where} returned {len(values)} values of "{name}" for {len(result)} rows')
    return result


def check_loss(result: object, batch: Batch, method: str | None) -> LossOutput:
    """Return the result of ``align_compute_loss`` if the engine can divide and differentiate it.

    Raises:
        PluginError: there is no term, a sum is not a 0-dimensional tensor, a count is unknown, two terms share a name, no
            term has a gradient although gradients are enabled, or a metric has one.
    """
    import torch

    where = f"{method}: align_compute_loss"
    if not isinstance(result, LossOutput):
        raise PluginError(f"{where} must return an alignkit.LossOutput, not {type(result).__name__}")
    if not result.terms:
        raise PluginError(f"{where} returned no loss term")
    names = [term.name for term in result.terms]
    for name in (*names, *result.metrics):
        if not isinstance(name, str) or not name:
            raise PluginError(f"{where}: the name of a term or metric must be text, not {name!r}")
    if len(set(names)) < len(names):
        raise PluginError(f"{where} returned two terms called {max(names, key=names.count)!r}")
    for term in result.terms:
        _check_sum(f'{where}: term "{term.name}"', term.sum, term.per, batch)
    if torch.is_grad_enabled() and not any(term.sum.requires_grad for term in result.terms):
        raise PluginError(f"{where} returned no term with a gradient: was the policy scored with grad=False?")
    for name, metric in result.metrics.items():
        _check_sum(f'{where}: metric "{name}"', metric.sum, metric.per, batch)
        if metric.sum.requires_grad:
            raise PluginError(f'{where}: metric "{name}" has a gradient: detach it')
    return result


def check_rows(result: object, plugins: str) -> RawRows | None:
    """Return the result of ``align_load_data``; raises :class:`PluginError` if it is neither rows nor None."""
    if result is None or (isinstance(result, RawRows) and hasattr(result.rows, "__getitem__")):
        return result
    given = f"RawRows of a {type(result.rows).__name__}" if isinstance(result, RawRows) else type(result).__name__
    raise PluginError(f"{plugins}: align_load_data must return alignkit.RawRows of a sequence, or None, not {given}")


def check_result(result: object, where: str) -> SuiteResult:
    """Return the result of a suite; raises :class:`PluginError` if it or one of its metrics has another type."""
    if not isinstance(result, SuiteResult):
        raise PluginError(f"{where} must return an alignkit.SuiteResult, not {type(result).__name__}")
    for name, metric in dict(result.metrics).items():
        if not (isinstance(name, str) and isinstance(metric, Estimate)):
            raise PluginError(f"{where}: metric {name!r} must be an alignkit.Estimate, not {type(metric).__name__}")
    return result


def _check_sum(where: str, value: object, per: str, batch: Batch) -> None:
    """Raise :class:`PluginError` unless ``value`` is a 0-dimensional tensor and ``per`` names a count of the batch."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise PluginError(f"{where} must be a tensor, not {type(value).__name__}")
    if value.dim():
        raise PluginError(f"{where} must be a sum (a 0-dimensional tensor), not a tensor of shape {list(value.shape)}")
    if per not in (known := [*COUNTS, *batch.row_counts]):
        raise PluginError(
            f'{where} is per "{per}", which is not a count{suggest(per, known)} (known: {", ".join(known)})'
        )
