"""Exports for mlx-lm: a run's LoRA adapter in its format, loaded again by mlx-lm and compared with the run on its held-out rows."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import Example, build_model, settings
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError, ModelError, RunFailedError
from alignkit.rundir.directory import RunDir
from alignkit.system.files import require_writable, staged_directory, write_json

from alignkit_eval.export import held_out_examples, token_logps

TOLERANCE = 0.05
"""Nats a token by which log-probabilities may differ on average: mlx-lm loads the base in the type of its checkpoint."""
_NAMES = {
    "lora_A.default.weight": "lora_a",
    "lora_B.default.weight": "lora_b",
    "lora_magnitude_vector.default.weight": "m",
}
_LAYER = re.compile(r"(?:.*\.)?layers\.\d+\.(?P<key>.+)")


def export_mlx(run: Path, output: Path) -> Path:
    """Write ``adapters.safetensors`` and ``adapter_config.json`` for ``mlx_lm.load(base, adapter_path=output)``.

    Raises ``ConfigError`` without mlx-lm, ``ModelError`` for what its format does not have, and ``RunFailedError`` if the adapter
    does not score like the run.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        raise ConfigError('--format mlx needs mlx-lm: pip install "alignkit[mlx]"')
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already: export elsewhere with --output")
    require_writable(output, directory=True)
    from safetensors.torch import save_file

    config = settings.resolve(RunDir.open(run).config, resume=True).config
    loaded = build_model(ModelConfig(name=str(run), dtype="float32"))
    if not loaded.is_adapter or loaded.classifier:
        raise ModelError(f"{run} trained no LoRA adapter of a language model: mlx-lm loads --format hf as it is")
    model: Any = loaded.model
    described, tensors = adapter_of(model)
    examples = held_out_examples(config, loaded)
    expected = token_logps(loaded, config, examples)
    with staged_directory(output) as staged:
        write_json(staged / "adapter_config.json", described)
        save_file(tensors, staged / "adapters.safetensors", metadata={"format": "mlx"})
        off = abs(expected.numpy() - _by_mlx_lm(model.peft_config["default"].base_model_name_or_path, staged, examples))
        if not off.mean() <= TOLERANCE:
            raise RunFailedError(
                f"mlx-lm does not score like {run}: log-probabilities differ by {off.mean():.2g} nats on average; nothing was written"
            )
        if output.exists():
            output.rmdir()  # it was empty, and must still be
    return output


def adapter_of(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mlx-lm's description of a peft model's adapter, and its matrices by mlx-lm's names, transposed as there.

    Raises ``ModelError`` for an adapter that mlx-lm does not have.
    """
    tensors: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if "default" not in name.split("."):
            continue
        place = next((end for end in _NAMES if name.endswith(f".{end}")), None)
        if place is None:
            raise ModelError(f"mlx-lm's adapters have no {name}: export with --format hf")
        key = f"{name.removeprefix('base_model.model.').removesuffix(place)}{_NAMES[place]}"
        found = parameter.detach().float()
        tensors[key] = (found if found.ndim == 1 else found.T).contiguous()
    scaled = [layer for layer in model.modules() if isinstance(getattr(layer, "scaling", None), dict)]
    layers = [layer for layer in scaled if "default" in layer.scaling]
    kinds = {(layer.r["default"], layer.scaling["default"]) for layer in layers}
    if len(kinds) != 1:
        raise ModelError("mlx-lm's adapters have one rank and one scale: export with --format hf")
    ((rank, scale),) = kinds
    dora = any(name.endswith(".m") for name in tensors)
    described = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": model.config.get_text_config().num_hidden_layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(set(_keys(tensors)))},
    }
    return described, tensors


def _keys(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the adapted modules inside a layer, or in the model."""
    for name in tensors:
        module = name.rpartition(".")[0]
        inside = _LAYER.fullmatch(module)
        yield inside["key"] if inside else module


def _by_mlx_lm(base: str, adapter: Path, examples: Sequence[Example]) -> Any:
    """Return the log-probabilities of all completions' tokens by mlx-lm, ``[tokens]``."""
    import mlx.core as mx
    import mlx_lm
    import numpy as np

    try:
        model = mlx_lm.load(base, adapter_path=str(adapter))[0]
    except Exception as error:  # of whatever kind, as mlx-lm does not check
        raise ModelError(f"mlx-lm cannot load {base} with the adapter: {error}") from error
    found = []
    for example in examples:
        for k, completion in enumerate(example.completions):
            ids = mx.array([[*example.prompt, *completion]])
            logits = model(ids[:, :-1]).astype(mx.float32)
            logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            own = np.array(mx.take_along_axis(logps, ids[:, 1:, None], axis=-1)[0, len(example.prompt) - 1 :, 0])
            mask = example.masks[k] if example.masks else None
            found.append(own if mask is None else own[np.array(mask, bool)])
    return np.concatenate(found)
