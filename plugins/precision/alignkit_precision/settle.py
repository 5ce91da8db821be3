"""What ``model.dtype: auto`` means on this machine, and settings of precision that contradict each other."""

from __future__ import annotations

import os

from alignkit import RunConfig
from alignkit.errors import ConfigError

from alignkit_precision.compiled import refuse_uncompilable, wants_compiled
from alignkit_precision.liger import refuse_without_liger, wants_liger

_FASTER = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
"""Parts of the values of ``ONEDNN_MAX_CPU_ISA`` that allow products of bfloat16."""


def settle_precision(config: RunConfig) -> None:
    """Fill in ``train.bf16`` where ``model.dtype`` is auto: the record then has it, and a resume or evaluation keeps it.

    Raises :class:`ConfigError` for settings that contradict each other.
    """
    _adopt_accelerates(config)
    given, dtype = config.train.arguments, config.model.dtype
    bf16, fp16 = bool(given.get("bf16")), bool(given.get("fp16"))
    if bf16 and fp16:
        raise ConfigError("train.bf16 and train.fp16 are both true: set one of them")
    if (bf16 and dtype == "float16") or (fp16 and dtype == "bfloat16"):
        key = "bf16" if bf16 else "fp16"
        raise ConfigError(f"train.{key} is true, but model.dtype is {dtype}: remove one of them")
    if fp16 and dtype == "float16" and config.model.lora is None:
        raise ConfigError("train.fp16 trains weights of float32, but model.dtype is float16: remove model.dtype")
    if wants_compiled(config):
        refuse_uncompilable(config)
    if wants_liger(config):
        refuse_without_liger(config)
    if dtype == "auto" and not fp16 and given.get("bf16") is None and config.run.engine == "torch":
        faster = faster_in_bfloat16(use_cpu=bool(given.get("use_cpu")))
        config.train = config.train.model_copy(update={"bf16": faster})


def _adopt_accelerates(config: RunConfig) -> None:
    """Fill in the precision that ``accelerate launch --mixed_precision`` asks for: Trainer reads it from the environment."""
    asked, given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), config.train.arguments
    if asked == "no" or given.get(asked):
        return
    if asked not in ("bf16", "fp16") or any(given.get(key) is not None for key in ("bf16", "fp16")):
        raise ConfigError(
            f"accelerate launch asks for mixed precision {asked} (its command line or its configuration file), but the run "
            "does not: start it with --mixed_precision no, and use train.bf16 or train.fp16"
        )
    config.train = config.train.model_copy(update={asked: True})


def faster_in_bfloat16(*, use_cpu: bool = False) -> bool:
    """Whether the device that trains multiplies matrices faster in bfloat16 than in float32, as its instructions say."""
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN multiplies on CPUs, and this variable can keep it from using newer instructions.
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most and not any(word in most for word in _FASTER):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
