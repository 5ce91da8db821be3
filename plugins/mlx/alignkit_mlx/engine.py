"""The engine ``mlx``: what it refuses, and how it takes over a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

from alignkit import OutsideEngine, RunConfig
from alignkit.contract import EngineModel, LoadedModel, Method, Need
from alignkit.errors import ConfigError, ModelError

OPTIMIZERS = ("adafactor", "adamw_torch", "adamw_torch_fused", "sgd")

_REFUSED: Mapping[str, str] = {
    "fp16": "set train.bf16, or model.dtype: float16 with model.lora",
    "tf32": "it is a mode of NVIDIA's GPUs",
    "optim_args": "none of its optimizers has further settings",
    "optim_target_modules": "none of its optimizers has further settings",
    "full_determinism": "it is a mode of torch",
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), "its checkpointing has none"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), "it compiles for itself"),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "it has kernels of its own"),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), "it trains in one process"),
    **dict.fromkeys(
        ("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"), "it trains in one process"
    ),
}
"""Keys of ``train`` that the engine refuses, and why."""


class MLXEngine(OutsideEngine):
    """MLX, for Apple silicon; models are those of mlx-lm."""

    name = "mlx"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "start", "reward"})
    unused: ClassVar[Mapping[str, str]] = {
        "model.attention": "it has one attention",
        "model.scorer": "it chooses how to score by a probe",
        "model.head": "the output layer is computed in the type of its weights",
        "model.dropout": "the models of mlx-lm have no dropout",
    }

    def check(self, config: RunConfig, method: Method[Any]) -> None:
        """Refuse keys and settings that only torch has, and packages that are missing."""
        super().check(config, method)
        for package in ("mlx", "mlx_lm"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f'run.engine mlx needs the package {package}: pip install "alignkit[mlx]"')
        given = config.train.arguments
        for key, why in _REFUSED.items():
            if given.get(key):
                raise ConfigError(f"train.{key} cannot be combined with run.engine mlx: {why}")
        optimizer = str(getattr(given.get("optim"), "value", given.get("optim") or OPTIMIZERS[0]))
        if optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"run.engine mlx has no optimizer {optimizer}: set train.optim to {', '.join(OPTIMIZERS)}"
            )
        settings = method.settings
        if getattr(settings, "sampler", "model") != "model":
            raise ConfigError("method.sampler: run.engine mlx generates with its own model: set it to model")
        if getattr(settings, "reference_update_every", None) is not None:
            raise ConfigError("method.reference_update_every needs run.engine: torch, whose weights it changes")

    def base(self, config: RunConfig) -> RunConfig:
        """Return the configuration without the quantization, which MLX makes itself."""
        model = config.model.model_copy(update={"quantization": None})
        return super().base(config).model_copy(update={"model": model})

    def open(self, loaded: LoadedModel, config: RunConfig) -> EngineModel:
        """Return the model in MLX's memory, after a comparison with torch's."""
        import mlx.core as mx

        from alignkit_mlx.convert import cast_frozen, convert, quantize
        from alignkit_mlx.model import MLXModel
        from alignkit_mlx.probe import choose, expected, narrowed, require_agreement

        given, bits = config.train.arguments, config.model.quantization
        if bits and not loaded.is_adapter:
            raise ModelError("model.quantization needs model.lora: a quantized base model cannot be trained")
        if given.get("use_cpu"):
            mx.set_default_device(mx.cpu)
        own, known, near = loaded.model.config.get_text_config(), expected(loaded), None
        window = getattr(own, "sliding_window", None) or 0
        if window:
            with narrowed([own, *loaded.model.modules()], window):
                near = expected(loaded)
        parts = convert(loaded)
        checkpointing = bool(given.get("gradient_checkpointing") or given.get("activation_checkpointing"))
        model = MLXModel(parts, seed=config.run.seed, checkpointing=checkpointing)
        longest = config.data.max_length + int((config.method.model_extra or {}).get("max_new_tokens") or 0)
        require_agreement(model, known, near, window, longest)
        half = bool(given.get("bf16"))
        if half:
            cast_frozen(parts)
        if bits:
            quantize(parts.model, parts.weights, int(bits.removesuffix("bit")))
        model.use_half(half)
        choose(model, known, dropout=parts.dropout)
        model.precision = model.types(bits)
        return model
