"""Liger's fused kernels in the layers (``train.use_liger_kernel``): norms, rotary embeddings and gated products.

Each replaces several passes over the hidden states by one Triton kernel (arXiv:2410.10989). The output layer keeps alignkit's
chunks: Liger's fused cross entropy gives a mean loss where methods need the log-probability of every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from alignkit import RunConfig
from alignkit.errors import ConfigError, first_line

from alignkit_precision.compiled import asks_for
from alignkit_precision.exchange import Comparison, Context, exchange, put_back

_HEAD = ("cross_entropy", "fused_linear_cross_entropy")


def wants_liger(config: RunConfig) -> bool:
    """Whether a run's layers use Liger's kernels."""
    return asks_for(config, "use_liger_kernel")


def refuse_without_liger(config: RunConfig) -> None:
    """Raise :class:`ConfigError` where Liger's kernels cannot run, and for settings of them that do not exist here."""
    from transformers.utils import is_liger_kernel_available

    given = config.train.arguments
    if config.run.strategy in ("fsdp", "zero2", "zero3") or given.get("deepspeed"):
        raise ConfigError("train.use_liger_kernel is tested with one process and ddp alone: set run.strategy to ddp")
    if given.get("use_cpu") or not torch.cuda.is_available():
        raise ConfigError("train.use_liger_kernel needs a GPU, for which its kernels are written: remove it")
    if not is_liger_kernel_available():
        raise ConfigError(
            "train.use_liger_kernel needs the package liger-kernel: pip install 'alignkit[liger]', or remove it"
        )
    for name in _HEAD:
        if (given.get("liger_kernel_config") or {}).get(name):
            raise ConfigError(
                f"train.liger_kernel_config.{name} is for a model's own loss; the output layer is computed in chunks: remove it"
            )


def use_liger(model: Any, config: RunConfig, contexts: Sequence[tuple[Context, bool]]) -> None:
    """Exchange the kernels of an innermost model, which then has to compute the same in each of ``contexts``.

    Other models of the process keep their kernels. Raises :class:`ConfigError` for an architecture that Liger has none for, and
    names the kernels whose log-probabilities or gradients differ; the model is unchanged then.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if apply is None:
        raise ConfigError(f"train.use_liger_kernel: liger-kernel has no kernels for {kind} models: remove it")
    known = {
        name: p.default for name, p in inspect.signature(apply).parameters.items() if name not in (*_HEAD, "model")
    }
    given = {
        name: on for name, on in (config.train.arguments.get("liger_kernel_config") or {}).items() if name not in _HEAD
    }
    for name in given.keys() - known.keys():
        raise ConfigError(
            f"train.liger_kernel_config: liger-kernel has no {name} for {kind} models, it has {', '.join(known)}"
        )
    chosen = {**known, **given}

    def disagreement(names: dict[str, bool]) -> str | None:
        # What is not named would have Liger's default.
        off = dict.fromkeys((*_HEAD, *known), False)
        accepted = inspect.signature(apply).parameters
        try:
            exchange(model, lambda: apply(model=model, **{n: on for n, on in (off | names).items() if n in accepted}))
        except Exception as error:  # of layers that are not what Liger expects; the model is unchanged
            return f"cannot be exchanged ({type(error).__name__}: {first_line(error)})"
        return comparison.disagreement()

    comparison = Comparison(model, contexts)
    if (found := disagreement(chosen)) is None:
        return
    alone = {name: disagreement({name: True}) for name, on in chosen.items() if on}
    put_back(model)
    wrong = {name: reason for name, reason in alone.items() if reason}
    reasons = "; ".join(f"{name} {reason}" for name, reason in wrong.items()) or f"their combination {found}"
    switches = ", ".join(f"{name}: false" for name in (wrong or known))
    raise ConfigError(
        f"train.use_liger_kernel: Liger's kernels do not compute what this {kind} model does: {reasons}. "
        f"Set train.liger_kernel_config={{{switches}}}, or remove train.use_liger_kernel"
    )
