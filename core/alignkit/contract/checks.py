"""What a plugin has to keep to: the hooks it implements, checked once, and what its hooks hand back, checked on every call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.contract.hooks import EXCLUSIVE, PROJECT, AlignSpecs
from alignkit.errors import PluginError, suggest

if TYPE_CHECKING:
    from alignkit.contract.batch import Batch
    from alignkit.contract.registry import PluginEntry
    from alignkit.contract.types import LossOutput


class Implementation(NamedTuple):
    """One hook implementation of a plugin, before pluggy sees it."""

    hook: str
    function: Any
    wraps: bool
    optional: bool


def hook_names() -> list[str]:
    """Return the name of every hook."""
    return [name for name in vars(AlignSpecs) if name.startswith(f"{PROJECT}_")]


def hook_arguments(hook: str) -> list[str]:
    """Return the arguments a hook can be asked for."""
    return [name for name in inspect.signature(getattr(AlignSpecs, hook)).parameters if name != "self"]


def implementations(plugin: object) -> Iterator[Implementation]:
    """Yield what ``plugin`` marked with ``@hookimpl``."""
    for name in dir(plugin):
        if isinstance(inspect.getattr_static(plugin, name, None), property):
            continue  # no hook, and reading it may ask for what is not there yet
        function = getattr(plugin, name)
        marks = getattr(function, f"{PROJECT}_impl", None) if inspect.isroutine(function) else None
        if isinstance(marks, dict):
            wraps = bool(marks.get("wrapper") or marks.get("hookwrapper"))
            yield Implementation(marks.get("specname") or name, function, wraps, bool(marks.get("optionalhook")))


def check_method(entry: PluginEntry, method: object) -> None:
    """Raise :class:`PluginError` where a method's hooks cannot work as meant, or it has none to train with."""
    if not _checked_hooks(entry, method) & {"align_compute_loss", "align_build_trainer"}:
        raise PluginError(f"{entry} implements neither align_compute_loss nor align_build_trainer: it cannot train")


def check_service(entry: PluginEntry, service: object, method: PluginEntry) -> None:
    """Raise :class:`PluginError` where a service's hooks cannot work as meant, or take the place of the method's."""
    taken = _checked_hooks(entry, service) & EXCLUSIVE
    if taken:
        raise PluginError(
            f"{entry} implements {min(taken)}, which belongs to {method}: it may only wrap it (hookimpl(wrapper=True))"
        )


def check_plugin_hooks(entry: PluginEntry, plugin: object) -> None:
    """Raise :class:`PluginError` where a hook of a plugin cannot work as meant; whose place it takes is not looked at."""
    _checked_hooks(entry, plugin)


def _checked_hooks(entry: PluginEntry, plugin: object) -> set[str]:
    """Check every implementation of a plugin; return the hooks it implements itself, not the ones it wraps."""
    try:
        found = list(implementations(plugin))
    except Exception as error:
        raise PluginError(f"{entry} cannot be looked through: {type(error).__name__}: {error}") from error
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
        raise PluginError(f'{entry} implements "{hook}", which is no hook{suggest(hook, hook_names())}')
    known = hook_arguments(hook)
    for name, parameter in inspect.signature(implementation.function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(
                f"{entry}: {hook} takes its arguments by position and name, without * or ** (known: {', '.join(known)})"
            )
        if parameter.default is not parameter.empty:
            raise PluginError(
                f'{entry}: {hook} gives its argument "{name}" a default, so it would never be passed: take the default away'
            )
        if name not in known:
            raise PluginError(
                f'{entry}: {hook} has no argument "{name}"{suggest(name, known)} (known: {", ".join(known)})'
            )


# ------------------------------------------------------------------------------------------------- answers


def check_batch(answer: object, method: str | None) -> Batch:
    """Return what ``align_prepare_batch`` answered; raises :class:`PluginError` where it is no batch, or columns are short."""
    from alignkit.contract.batch import Batch

    where = f"{method}: align_prepare_batch"
    if not isinstance(answer, Batch):
        raise PluginError(f"{where} must return an alignkit.Batch or None, not {type(answer).__name__}")
    for name, values in {**answer.columns, **answer.row_counts}.items():
        if len(values) != len(answer):
            raise PluginError(f'{where} returned {len(values)} values of "{name}" for {len(answer)} rows')
    return answer


def check_loss(answer: object, batch: Batch, method: str | None) -> LossOutput:
    """Return what ``align_compute_loss`` answered, once it is something the engine can divide and differentiate.

    Raises :class:`PluginError` where there is no term, a sum is no 0-dimensional tensor, a count is unknown, a name is given
    twice, no term carries a gradient though gradients are on, or a metric carries one.
    """
    import torch

    from alignkit.contract.types import LossOutput

    where = f"{method}: align_compute_loss"
    if not isinstance(answer, LossOutput):
        raise PluginError(f"{where} must return an alignkit.LossOutput, not {type(answer).__name__}")
    if not answer.terms:
        raise PluginError(f"{where} returned no loss term")
    names = [term.name for term in answer.terms]
    if len(set(names)) < len(names):
        raise PluginError(f"{where} returned two terms called {max(names, key=names.count)!r}")
    for term in answer.terms:
        _check_sum(f'{where}: term "{term.name}"', term.sum, term.per, batch)
    if torch.is_grad_enabled() and not any(term.sum.requires_grad for term in answer.terms):
        raise PluginError(f"{where} returned no term with a gradient: was the policy scored with grad=False?")
    for name, metric in answer.metrics.items():
        _check_sum(f'{where}: metric "{name}"', metric.sum, metric.per, batch)
        if metric.sum.requires_grad:
            raise PluginError(f'{where}: metric "{name}" carries a gradient: detach it')
    return answer


def _check_sum(where: str, value: object, per: str, batch: Batch) -> None:
    """Raise :class:`PluginError` unless ``value`` is a 0-dimensional tensor and ``per`` a count of the batch."""
    import torch

    from alignkit.contract.batch import COUNTS

    if not isinstance(value, torch.Tensor):
        raise PluginError(f"{where} must be a tensor, not {type(value).__name__}")
    if value.dim():
        raise PluginError(f"{where} must be a sum (a tensor of no dimension), not of shape {list(value.shape)}")
    if per not in COUNTS and per not in batch.row_counts:
        known = [*COUNTS, *batch.row_counts]
        raise PluginError(f'{where} is per "{per}", which is no count{suggest(per, known)} (known: {", ".join(known)})')
