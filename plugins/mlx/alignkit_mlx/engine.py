"""The engine ``mlx``: what it refuses, and how it takes over a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from alignkit import OutsideEngine, RunConfig
from alignkit.contract import EngineModel, LoadedModel, Need
from alignkit.errors import ModelError


class MLXEngine(OutsideEngine):
    """MLX, for Apple silicon; models are those of mlx-lm."""

    name = "mlx"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "start", "reward"})
    optimizers = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd")
    packages: ClassVar[Mapping[str, str]] = dict.fromkeys(("mlx", "mlx_lm"), '"alignkit[mlx]"')
    unused: ClassVar[Mapping[str, str]] = {
        "model.attention": "it has one attention",
        "model.scorer": "it chooses how to score by a probe",
        "model.head": "the output layer is computed in the type of its weights",
        "model.dropout": "the models of mlx-lm have no dropout",
        "train.optim_args": "none of its optimizers has further settings",
        "train.optim_target_modules": "none of its optimizers has further settings",
        "train.activation_checkpointing_kwargs": "its checkpointing has no settings",
        "train.gradient_checkpointing_kwargs": "its checkpointing has no settings",
    }

    def base(self, config: RunConfig) -> RunConfig:
        """Return the configuration without the quantization, which MLX makes itself."""
        model = config.model.model_copy(update={"quantization": None})
        return super().base(config).model_copy(update={"model": model})

    def open(self, loaded: LoadedModel, config: RunConfig) -> EngineModel:
        """Return the model in MLX's memory, after a comparison with torch's."""
        import mlx.core as mx

        from alignkit_mlx.convert import cast_frozen, convert, quantize
        from alignkit_mlx.model import MLXModel
        from alignkit_mlx.probe import Known, choose, require_agreement

        given, bits = config.train.arguments, config.model.quantization
        if bits and not loaded.is_adapter:
            raise ModelError("model.quantization needs model.lora: a quantized base model cannot be trained")
        if given.get("use_cpu"):
            mx.set_default_device(mx.cpu)
        known = Known.of(loaded)
        parts = convert(loaded)
        checkpointing = bool(given.get("gradient_checkpointing") or given.get("activation_checkpointing"))
        model = MLXModel(parts, seed=config.run.seed, checkpointing=checkpointing)
        longest = config.data.max_length + int((config.method.model_extra or {}).get("max_new_tokens") or 0)
        require_agreement(model, known, longest)
        half = bool(given.get("bf16"))
        if half:
            cast_frozen(parts)
        if bits:
            quantize(parts, int(bits.removesuffix("bit")))
        model.round(half=half, bits=bits)
        choose(model, known)
        return model
