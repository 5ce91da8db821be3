"""Whether a model configuration is one of a causal language model (or classifier) that this machine can hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.models.configuration import unreadable
from alignkit.system.environment import memory_gib

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_LAYERS = 10_000
"""Building so many modules takes minutes, whatever their size; real models have at most a few hundred layers."""

_BYTES = {"float32": 4}  # other types, and those of a checkpoint, take at least 2


def check_model(path: str, found: PreTrainedConfig, config: ModelConfig, *, classifier: bool, meta: bool) -> None:
    """Check the configuration ``found`` in ``path``; with ``meta`` the model may be larger than this machine's memory.

    Raises :class:`ModelError` if it is of another kind of model, has impossible sizes, or describes weights that this machine
    cannot hold.
    """
    try:
        _require_kind(path, found, classifier)
    except (TypeError, AttributeError) as error:
        raise unreadable(path, error, partial(_require_kind, path, classifier=classifier)) from error
    sizes = _sizes(found.get_text_config())
    for name, size in sizes.items():
        least = int(name != "num_hidden_layers")  # a model of no layers predicts from the last token alone
        if size < least:
            raise ModelError(f"{path}: {name} in its config.json must be at least {least}, not {size}")
    if (layers := sizes.get("num_hidden_layers", 0)) > MOST_LAYERS:
        raise ModelError(f"{path}: {layers:,} layers (num_hidden_layers in its config.json), more than {MOST_LAYERS:,}")
    width = 0.5 if config.quantization == "4bit" else 1 if config.quantization else _BYTES.get(config.dtype, 2)
    needed, memory = _parameters(sizes) * width / 2**30, memory_gib()
    if needed > memory and not meta:
        raise ModelError(
            f"{path} needs at least {needed:,.0f} GiB for its weights in {config.quantization or config.dtype}, and "
            f"this machine has {memory:,.0f} GiB of memory (its config.json: "
            f"{', '.join(f'{name} {size:,}' for name, size in sizes.items())})"
        )


def _require_kind(path: str, found: Any, classifier: bool) -> None:
    if found.is_encoder_decoder:
        raise ModelError(f"{path} is an encoder-decoder model; alignkit trains causal language models")
    if getattr(found, "auto_map", None):
        return  # its code decides
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    what = "sequence classifier" if classifier else "causal language model"
    if type(found) not in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if classifier else MODEL_FOR_CAUSAL_LM_MAPPING):
        raise ModelError(f"{path} is not a {what}: transformers has none of model type {found.model_type}")
    if classifier:
        return
    saved = next(iter(getattr(found, "architectures", None) or ()), found.model_type)
    if getattr(found, "type_vocab_size", 0) and not getattr(found, "is_decoder", False):
        raise ModelError(
            f"{path} is not a causal language model but an encoder ({saved}), which reads in both directions"
        )
    if "For" in saved and not any(word in saved for word in ("ForCausalLM", "ForConditionalGeneration", "ForSequence")):
        raise ModelError(f"{path} is not a causal language model: it was saved as {saved}")
    if saved.endswith("Model") and not found.get_text_config().tie_word_embeddings:
        raise ModelError(f"{path} was saved as {saved}, without the head that a causal language model needs")


def _sizes(text: Any) -> dict[str, int]:
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    found = {name: getattr(text, name, None) for name in names.split()}
    return {name: size for name, size in found.items() if isinstance(size, int) and not isinstance(size, bool)}


def _parameters(sizes: dict[str, int]) -> int:
    """Return a lower bound of the number of parameters: embeddings, half of the attention, the feed-forward's matrices."""
    hidden, layers = sizes.get("hidden_size", 0), sizes.get("num_hidden_layers", 0)
    return hidden * (sizes.get("vocab_size", 0) + layers * (2 * hidden + 2 * sizes.get("intermediate_size", 0)))
